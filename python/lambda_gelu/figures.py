"""Pictures of the reports. Readable in black and white: markers, hatches and line styles, not colours alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from ._table import counted
from .report import LITTLE_LOSS_DB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .inspection import InspectionReport
    from .report import SubstitutedSite, SubstitutionReport

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure as _Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "matplotlib":
        raise
    raise ImportError(
        "a picture of a report needs matplotlib: pip install 'lambda-gelu[report]'", name=error.name
    ) from error

# Okabe and Ito's palette, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, BLACK, GREY = "#0072B2", "#D55E00", "#009E73", "#000000", "#999999"
_STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.8}

DEFAULT_TOLERANCE_DB = 30.0
_Panel = Callable[["Axes", Sequence[Any]], None]
_LONGEST_NAME, _MOST_NAMES = 30, 60


def substitution_figure(report: SubstitutionReport) -> Figure:
    """A picture of a :class:`SubstitutionReport`: λ and κ, SER, zeros of every site, and the metric by stage.

    Panels without any value are left out.
    """
    sites = report.sites
    panels: list[_Panel] = [_hardness_panel]
    if _known(sites, "ser_db") or _known(sites, "measured_ser_db"):
        panels.append(_ser_panel)
    if _known(sites, "zeros_before") or _known(sites, "zeros_after"):
        panels.append(_zeros_panel)
    with mpl.rc_context(_STYLE):
        figure, further = _figure_of_sites(sites, panels, [_label(site) for site in sites], 1 if report.metrics else 0)
        if report.metrics:
            _metric_panel(further[0], report)
        figure.suptitle(_title(report), fontsize=14)
    return figure


def inspection_figure(report: InspectionReport) -> Figure:
    """A picture of an :class:`InspectionReport`: λ now and its target, κ, SER and zeros of every site."""
    sites = report.sites

    def hardness_panel(axes: Axes, sites: Sequence[Any]) -> None:
        for row, site in enumerate(sites):
            if site.target_mean > site.hardness_mean:
                axes.plot([site.hardness_mean, site.target_mean], [row, row], ":", color=GREY, linewidth=1.5, zorder=0)
        _hardness_panel(axes, sites)
        _marks(
            axes, [site.target_mean for site in sites], ">", GREEN, f"λ for {report.tolerance_db:g} dB", filled=False
        )
        _logarithmic(axes)
        axes.set_title("Hardness now, and what the tolerance asks for")
        _legend(axes)

    def ser_panel(axes: Axes, sites: Sequence[Any]) -> None:
        _decibel_axis(axes, [site.ser_db for site in sites], report.tolerance_db)
        _bars(axes, [site.ser_db for site in sites], "as the model stands")
        axes.set_title("Signal to error of a swap now (right is better)")
        _legend(axes)

    with mpl.rc_context(_STYLE):
        panels: list[_Panel] = [hardness_panel, ser_panel, _zeros_panel]
        figure, _ = _figure_of_sites(sites, panels, [_shortened(site.name) for site in sites], 0)
        reached = sum(site.reached for site in sites)
        share = f"{reached} of {counted(len(sites), 'site')} at {report.tolerance_db:g} dB or above"
        figure.suptitle(f"λ-GELU before a swap to ReLU: {share}", fontsize=14)
    return figure


def plot_substitution(report: SubstitutionReport, path: str | PathLike[str]) -> None:
    """Writes :func:`substitution_figure` to a PNG file."""
    figure = substitution_figure(report)
    with mpl.rc_context(_STYLE):
        figure.savefig(path, dpi=150, format="png")


def plot_inspection(report: InspectionReport, path: str | PathLike[str]) -> None:
    """Writes :func:`inspection_figure` to a PNG file."""
    figure = inspection_figure(report)
    with mpl.rc_context(_STYLE):
        figure.savefig(path, dpi=150, format="png")


def _figure_of_sites(
    sites: Sequence[Any], panels: Sequence[_Panel], labels: Sequence[str], further: int
) -> tuple[Figure, list[Axes]]:
    """Panels that share the sites as their rows; and further empty axes beside them."""
    count = len(panels) + further
    figure = _Figure(figsize=(4.4 * count + 1.6, _height(len(sites))), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for index, (panel, its_axes) in enumerate(zip(panels, axes, strict=False)):
        panel(its_axes, sites)
        _name_sites(its_axes, labels, shown=index == 0)
    return figure, axes[len(panels) :]


# --- panels ----------------------------------------------------------------------------------------------------------


def _hardness_panel(axes: Axes, sites: Sequence[SubstitutedSite]) -> None:
    rows = range(len(sites))
    ranges = [(row, site) for row, site in zip(rows, sites, strict=True) if site.hardness_min < site.hardness_max]
    for index, (row, site) in enumerate(ranges):
        label = "λ, least to greatest channel" if index == 0 else None
        axes.plot(
            [site.hardness_min, site.hardness_max], [row, row], "-", color=BLUE, linewidth=3, alpha=0.4, label=label
        )
    axes.plot([site.hardness_mean for site in sites], rows, "o", color=BLUE, markersize=7, label="hardness λ")
    if _known(sites, "effective_hardness"):
        _marks(axes, [site.effective_hardness for site in sites], "s", ORANGE, "effective hardness κ = λσ")
    _logarithmic(axes)
    axes.set_title("Hardness before the swap")
    axes.set_xlabel("λ and κ (logarithmic)")
    _legend(axes)


def _ser_panel(axes: Axes, sites: Sequence[SubstitutedSite]) -> None:
    measured = [site.measured_ser_db for site in sites]
    predicted = [site.ser_db for site in sites]
    _decibel_axis(axes, [*predicted, *measured], DEFAULT_TOLERANCE_DB)
    if _known(sites, "ser_db"):
        _bars(axes, predicted, "predicted from the statistics")
        if _known(sites, "measured_ser_db"):
            _marks(axes, measured, "D", BLACK, "measured", filled=False)
    else:
        _bars(axes, measured, "measured")
    axes.set_title("Signal to error of the swap (right is better)")
    _legend(axes)


def _zeros_panel(axes: Axes, sites: Sequence[SubstitutedSite]) -> None:
    before = [None if site.zeros_before is None else 100 * site.zeros_before for site in sites]
    after = [None if site.zeros_after is None else 100 * site.zeros_after for site in sites]
    _shares(axes, before, after, ("before: gate below 0.01", "after: exact zeros of ReLU"))
    axes.set_title("Zeros before and after the swap")


def _metric_panel(axes: Axes, report: SubstitutionReport) -> None:
    stages, values = list(report.metrics), list(report.metrics.values())
    finite = [(index, value) for index, value in enumerate(values) if math.isfinite(value)]
    axes.plot(*zip(*finite, strict=True) if finite else ([], []), "-o", color=BLACK, markersize=8, linewidth=1.2)
    for index, value in enumerate(values):
        shown, height = (f"{value:.5g}", value) if math.isfinite(value) else (str(value), finite[0][1] if finite else 0)
        # On the side to which the line does not go.
        neighbours = [values[other] for other in (index - 1, index + 1) if 0 <= other < len(values)]
        below = sum(other > height for other in neighbours) > sum(other < height for other in neighbours)
        axes.annotate(
            shown,
            (index, height),
            xytext=(0, -10 if below else 10),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            weight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    if math.isfinite(report.metrics.get("before", math.nan)):
        axes.axhline(
            report.metrics["before"], color=GREY, linestyle="--", linewidth=1, label="before the swap", zorder=0
        )
        _legend(axes)
    axes.set_xticks(range(len(stages)), stages)
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.margins(y=0.25)
    axes.set_title("The metric by stage")
    axes.set_xlabel("stage")
    better = {True: " (higher is better)", False: " (lower is better)", None: ""}[report.higher_is_better]
    axes.set_ylabel(report.metric_name + better)


# --- parts of panels -------------------------------------------------------------------------------------------------


def _bars(axes: Axes, values: Sequence[float | None], label: str) -> None:
    """From 0; to the end of the axis for what is infinite, and at its beginning a sign for what is minus infinity."""
    begin, end = axes.get_xlim()
    rows = [row for row, value in enumerate(values) if value is not None and value > -math.inf]
    lengths = [min(value, end) for value in values if value is not None and value > -math.inf]
    axes.barh(rows, lengths, 0.6, color="white", edgecolor=BLUE, hatch="//", linewidth=1.2, label=label)
    for row, value in enumerate(values):
        if value is not None and math.isinf(value):
            sign, place = ("∞", end) if value > 0 else ("−∞", begin)
            axes.annotate(sign, (place, row), xytext=(4, 0), textcoords="offset points", va="center", weight="bold")


def _marks(
    axes: Axes, values: Sequence[float | None], marker: str, color: str, label: str, *, filled: bool = True
) -> None:
    rows, finite = _finite(values)
    face = color if filled else "white"
    axes.plot(finite, rows, marker, color=color, markerfacecolor=face, markersize=6, linestyle="none", label=label)


def _shares(axes: Axes, first: Sequence[float | None], second: Sequence[float | None], labels: tuple[str, str]) -> None:
    """Two percentages per site, joined by a line."""
    for row, (start, end) in enumerate(zip(first, second, strict=True)):
        if start is not None and end is not None:
            axes.plot([start, end], [row, row], ":", color=GREY, linewidth=1.5, zorder=0)
    if any(value is not None for value in first):
        _marks(axes, first, "^", GREEN, labels[0], filled=False)
    if any(value is not None for value in second):
        _marks(axes, second, "v", ORANGE, labels[1])
    axes.set_xlim(-3, 103)
    axes.set_xlabel("share of a site's outputs (%)")
    _legend(axes)


def _decibel_axis(axes: Axes, values: Sequence[float | None], tolerance_db: float) -> None:
    """Where the swap is known to cost little, and what was asked for."""
    axes.axvline(LITTLE_LOSS_DB, color=BLACK, linestyle=":", linewidth=1.5, label=f"{LITTLE_LOSS_DB:g} dB: little loss")
    if tolerance_db != LITTLE_LOSS_DB:
        text = "usual tolerance" if tolerance_db == DEFAULT_TOLERANCE_DB else "tolerance"
        axes.axvline(tolerance_db, color=BLACK, linestyle="--", linewidth=1.5, label=f"{tolerance_db:g} dB: {text}")
    finite = _finite(values)[1]
    axes.set_xlim(min(0.0, *finite, 0.0), 1.1 * max(tolerance_db, LITTLE_LOSS_DB, *finite))
    axes.set_xlabel("SER (dB)")


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.margins(x=0.12)
    axes.autoscale_view()
    low, high = axes.get_xlim()
    fractions = (1.0,) if high / low > 12 else (1.0, 1.5) if high / low > 3 else (1.0, 1.25, 1.5, 1.75)
    axes.xaxis.set_major_locator(LogLocator(base=2, subs=fractions, numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _finite(values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    pairs = [(row, value) for row, value in enumerate(values) if value is not None and math.isfinite(value)]
    return [row for row, _ in pairs], [value for _, value in pairs]


def _known(sites: Sequence[Any], attribute: str) -> bool:
    return any(getattr(site, attribute) is not None for site in sites)


def _legend(axes: Axes) -> None:
    """Below the axis, where it hides no site."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13 * 6 / axes.figure.get_figheight()), frameon=False)


def _name_sites(axes: Axes, names: Sequence[str], *, shown: bool) -> None:
    """The sites from top to bottom; every n-th name where there are too many to read."""
    step = math.ceil(len(names) / _MOST_NAMES)
    labels = list(names[::step]) if shown else [""] * len(names[::step])
    axes.set_yticks(range(0, len(names), step), labels)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    if shown:
        axes.set_ylabel("site")


def _label(site: SubstitutedSite) -> str:
    name = _shortened(site.name)
    return name if site.substituted else f"{name}\n(still λ-GELU)"


def _shortened(name: str) -> str:
    if len(name) <= _LONGEST_NAME:
        return name
    half = (_LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _height(sites: int) -> float:
    return min(max(3.6 + 0.3 * sites, 5.4), 24.0)


def _title(report: SubstitutionReport) -> str:
    count = counted(len(report.sites), "site")
    return f"From λ-GELU to ReLU: {f'{len(report.substituted)} of ' if report.left else ''}{count} substituted"
