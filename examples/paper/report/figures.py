"""The figures of docs/results.md. Readable in black and white: markers and line styles, not colours alone."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from PIL import Image

from examples.paper.records import Record
from examples.paper.system import System

from .runs import MODES, Runs, learned_hardness, learning_epochs, rank_correlations, swap_costs, unit
from .studies import ser_and_cost
from .tables import NETWORKS, Systems, grid, grid_drift, grid_score, mode_pairs, shown

# Okabe and Ito's palette, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, PURPLE, BLACK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#888888"
STYLES = [(BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"), (BLACK, "-", "v")]
MODE_STYLES = dict(zip(MODES, STYLES, strict=False))
_RC = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
_MOST_NAMED = 5  # sites in a legend; deeper networks have shades and say which end is which


def draw(systems: Systems, runs: Runs, folder: Path) -> list[str]:
    """Writes every figure there are records for; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, figure in FIGURES.items():
        with mpl.rc_context(_RC):
            made = figure(systems, runs)
            if made is not None:
                _save(made, folder / f"{name}.png")
                drawn.append(name)
    return drawn


def _save(figure: Figure, file: Path) -> None:
    """As a PNG of 128 colours, which takes a third of the space."""
    content = io.BytesIO()
    figure.savefig(content, dpi=90, format="png", facecolor="white")
    picture = Image.open(content).convert("RGB")
    picture.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, optimize=True)


def _panels(rows: int, columns: int, width: float = 4.2, height: float = 3.0) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(width * columns, height * rows + 0.6), layout="constrained")
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def _mean(found: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.mean(values) for values in zip(*found, strict=True)]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


# --- λ over the epochs ------------------------------------------------------------------------------------------------


def hardness_over_epochs(systems: Systems, runs: Runs) -> Figure | None:
    """λ of every site over the epochs, by system and init: of the hardened runs, and of those that learn to the end."""
    every = [(system, suffix) for system in shown(systems, runs) for suffix in ("", "-learned")]
    found = [(each, suffix) for each, suffix in every if any(runs.of(each.name, mode + suffix) for mode in MODES)]
    if not found:
        return None
    figure, panels = _panels(len(found), len(MODES), height=2.5)
    for (system, suffix), row in zip(found, panels, strict=True):
        records = [runs.of(system.name, mode + suffix) for mode in MODES]
        for mode, of_mode, axes in zip(MODES, records, row, strict=True):
            _hardness_panel(axes, f"{system.name}, {mode}{suffix}", of_mode)
        values = [v for of_mode in records for record in of_mode for epoch in record.epochs for v in epoch["hardness"]]
        for axes in row:
            axes.set_ylim(0.93, 1.2 * max(values))
    figure.suptitle("λ of every site, mean over the seeds; dotted: from here on λ is raised to its target")
    return figure


def _hardness_panel(axes: Axes, title: str, found: Sequence[Record]) -> None:
    axes.set(title=title, xlabel="epoch", ylabel="hardness λ", yscale="log")
    axes.set_yticks([1, 1.5, 2, 3, 4, 6, 8, 16, 32, 64])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if not found:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center")
        axes.set_xticks([])
        return
    epochs = [epoch["epoch"] for epoch in found[0].epochs]
    sites = len(found[0].head["sites"])
    every = max(len(epochs) // 6, 1)
    named = _named_sites(sites)
    for site, (colour, line, marker) in enumerate(_site_styles(sites)):
        values = _mean([[epoch["hardness"][site] for epoch in record.epochs] for record in found])
        marks = {"marker": marker, "label": f"site {site + 1}"} if site in named else {}
        first = site % every
        axes.plot(epochs, values, line, color=colour, markersize=4, markevery=(first, every), linewidth=1.4, **marks)
    learned = learning_epochs(found[0])[-1]["epoch"]
    is_hardened = learned < epochs[-1]
    if is_hardened:
        axes.axvline(learned, color=BLACK, linewidth=0.7, linestyle=(0, (1, 3)))
    axes.legend(fontsize=7, frameon=False, loc="lower right" if is_hardened else "best")


def _named_sites(sites: int) -> Sequence[int]:
    return range(sites) if sites <= _MOST_NAMED else (0, sites // 2, sites - 1)


def _site_styles(sites: int) -> Iterator[tuple[Any, str, str]]:
    """A style each for a few sites; more go from dark to light, with a marker for each third."""
    if sites <= _MOST_NAMED:
        yield from STYLES[:sites]
        return
    for site in range(sites):
        part = site / (sites - 1)
        colour = mpl.colormaps["viridis"](0.9 * part)
        yield colour, ("-", "--", ":")[min(int(3 * part), 2)], ("o", "s", "^")[min(int(3 * part), 2)]


# --- λ over the depth -------------------------------------------------------------------------------------------------


def hardness_over_depth(systems: Systems, runs: Runs) -> Figure | None:
    """The profile that each init starts with and what it has become when λ is learned."""
    found = [system for system in shown(systems, runs) if any(runs.of(system.name, mode) for mode in MODES)]
    return _one_panel_each(found, "λ over the depth: before training (grey) and when it is learned", runs, _depth_panel)


def _depth_panel(axes: Axes, system: System, runs: Runs) -> None:
    epochs = 0
    for mode, (colour, line, marker) in MODE_STYLES.items():
        records = runs.of(system.name, runs.learned(system.name, mode))
        if not records:
            continue
        learned = [learned_hardness(record) for record in records]
        epochs = learning_epochs(records[0])[-1]["epoch"]
        depth = list(range(1, len(learned[0]) + 1))
        axes.plot(depth, records[0].epochs[0]["hardness"], line, color=GREY, linewidth=0.8)
        deviations = [_deviation(values) for values in zip(*learned, strict=True)]
        axes.errorbar(
            depth, _mean(learned), deviations, color=colour, linestyle=line, marker=marker, ms=5, capsize=2, label=mode
        )
    axes.set(title=f"{system.name}, learned for {epochs} epochs", xlabel="site", ylabel="hardness λ")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False)


def _one_panel_each(
    found: Sequence[System], title: str, runs: Runs, panel: Callable[[Axes, System, Runs], None]
) -> Figure | None:
    if not found:
        return None
    columns = min(3, len(found))
    # The title is wider than one panel.
    width = 7.0 if columns == 1 else 4.2
    figure, panels = _panels(math.ceil(len(found) / columns), columns, width)
    every = [axes for row in panels for axes in row]
    for axes, system in zip(every, found, strict=False):
        panel(axes, system, runs)
    for axes in every[len(found) :]:
        axes.set_visible(False)
    figure.suptitle(title)
    return figure


# --- ranks ------------------------------------------------------------------------------------------------------------


def ranks(systems: Systems, runs: Runs) -> Figure | None:
    """Spearman's correlation of the profiles over the epochs; where it is undefined, there is no point."""
    found = [
        system
        for system in shown(systems, runs)
        if any(rank_correlations(runs, system.name, *pair) for pair in mode_pairs())
    ]
    return _one_panel_each(found, "Rank correlation of the layer profiles of two inits", runs, _rank_panel)


def _rank_panel(axes: Axes, system: System, runs: Runs) -> None:
    for (first, second), (colour, line, marker) in zip(mode_pairs(), STYLES, strict=False):
        values = rank_correlations(runs, system.name, first, second)
        records = runs.of(system.name, runs.learned(system.name, first))
        if not values or not records:
            continue
        last = learning_epochs(records[0])[-1]["epoch"]
        epochs = [epoch for epoch in sorted(values) if epoch <= last]
        means = [statistics.mean(values[epoch]) for epoch in epochs]
        spreads = [_deviation(values[epoch]) for epoch in epochs]
        low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        every = max(len(epochs) // 8, 1)
        axes.plot(epochs, means, line, color=colour, marker=marker, ms=4, markevery=every, label=f"{first}, {second}")
    axes.axhline(0, color=BLACK, linewidth=0.6)
    axes.set(title=system.name, xlabel="epoch, λ being learned", ylabel="Spearman's ρ", ylim=(-1.9, 1.05))
    axes.set_yticks([-1, -0.5, 0, 0.5, 1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.legend(fontsize=7, frameon=False, loc="lower right")


# --- the grid ---------------------------------------------------------------------------------------------------------


def grids(systems: Systems, runs: Runs) -> Figure | None:
    """The paper's Figure 1: the shade is the drift, the number the best validation score beside GELU's."""
    found = [system for system in shown(systems, runs) if grid(runs, system.name)]
    title = "Shade: drift of λ per epoch; number: best validation score beside GELU's"
    return _one_panel_each(found, title, runs, _grid_panel)


def _grid_panel(axes: Axes, system: System, runs: Runs) -> None:
    found = grid(runs, system.name)
    temperatures, multipliers = (sorted({key[axis] for key in found}) for axis in (0, 1))
    shades = [
        [statistics.mean(grid_drift(found[t, m])) if (t, m) in found else math.nan for m in multipliers]
        for t in temperatures
    ]
    image = axes.imshow(shades, cmap="Greys", aspect="auto", norm=_shades(shades))
    middle = image.norm.vmin + 0.55 * (image.norm.vmax - image.norm.vmin)
    for row, t in enumerate(temperatures):
        for column, m in enumerate(multipliers):
            scores = grid_score(runs, system, found.get((t, m), []))
            text = f"{statistics.mean(scores):+.2f}".replace("-", "−") if scores else ""
            colour = "white" if shades[row][column] > middle else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(multipliers)), [f"{m:g}" for m in multipliers])
    axes.set_yticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
    axes.set(title=system.name, xlabel="multiplier of the learning rate α", ylabel="temperature τ")
    axes.figure.colorbar(image, ax=axes, label="mean |Δλ| per epoch")


def _shades(shades: Sequence[Sequence[float]]) -> mpl.colors.Normalize:
    values = [value for row in shades for value in row if not math.isnan(value)]
    return mpl.colors.Normalize(0, max(values, default=1.0) or 1.0)


# --- the swap ---------------------------------------------------------------------------------------------------------


def swap_over_epochs(systems: Systems, runs: Runs) -> Figure | None:
    """The validation metric of GELU and of λ-GELU as they stand and as ReLU, over the epochs."""
    found = [system for system in shown(systems, runs) if runs.of(system.name, "uniform")]
    return _one_panel_each(found, "Validation over the epochs, as it stands and as ReLU", runs, _swap_panel)


def _swap_panel(axes: Axes, system: System, runs: Runs) -> None:
    shown_values: list[float] = []
    lines = (("gelu", "validation", "GELU"), ("gelu", "as_relu", "GELU as ReLU"))
    lines += (
        ("uniform", "validation", "λ-GELU"),
        ("uniform", "as_relu", "λ-GELU as ReLU"),
        ("relu", "validation", "ReLU"),
    )
    for (arm, key, label), (colour, line, marker) in zip(lines, STYLES, strict=True):
        records = [record for record in runs.of(system.name, arm) if all(epoch[key] for epoch in record.epochs)]
        if not records:
            continue
        # The first tenth is far from the rest.
        skipped = 1 + len(records[0].epochs) // 10
        epochs = [epoch["epoch"] for epoch in records[0].epochs][skipped:]
        curves = [[epoch[key]["metric"] for epoch in record.epochs[skipped:]] for record in records]
        means = _mean(curves)
        shown_values += means if label != "GELU as ReLU" else []
        every = max(len(epochs) // 6, 1)
        axes.plot(epochs, means, line, color=colour, marker=marker, ms=4, markevery=every, lw=1.3, label=label)
    name = "accuracy, %" if system.higher_is_better else "perplexity"
    axes.set(title=system.name, xlabel="epoch", ylabel=f"validation {name}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.legend(fontsize=7, frameon=False)


def swap_costs_of_all(systems: Systems, runs: Runs) -> Figure | None:
    """What the swap at the best checkpoint costs on the test data: a mark for every seed."""
    found = [system for system in shown(systems, runs) if runs.of(system.name, "gelu")]
    title = "What the swap costs on the test data, at the best checkpoint (a mark for each seed; right is worse)"
    return _one_panel_each(found, title, runs, _cost_panel)


def _cost_panel(axes: Axes, system: System, runs: Runs) -> None:
    arms = [arm for arm in (*NETWORKS, "uniform-30db", "uniform-40db") if arm != "relu" and runs.of(system.name, arm)]
    costs = [swap_costs(runs, system, arm) for arm in arms]
    if max(abs(cost) for of_arm in costs for cost in of_arm) > 3:
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter("{x:g}")
    for row, (of_arm, (colour, _, marker)) in enumerate(zip(costs, [*STYLES, *STYLES], strict=False)):
        axes.plot(of_arm, [row] * len(of_arm), marker, color=colour, mec="black", mew=0.5, ms=7, alpha=0.85)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set(title=system.name, xlabel="points of accuracy" if system.higher_is_better else "% of the perplexity")
    axes.grid(axis="x", alpha=0.3)


def costs_by_ser(systems: Systems, runs: Runs) -> Figure | None:
    """What the swap costs on the validation data by the SER of the worst site: a mark for every epoch of every run."""
    found = [system for system in shown(systems, runs) if runs.of(system.name, "gelu")]
    title = "What the swap costs on the validation data after every epoch, by the SER of the worst site"
    return _one_panel_each(found, title, runs, _ser_panel)


def _ser_panel(axes: Axes, system: System, runs: Runs) -> None:
    axes.set_yscale("symlog", linthresh=0.3)
    kinds = (("gelu",), "GELU"), (MODES, "λ-GELU, to one λ"), (("uniform-30db", "uniform-40db"), "λ-GELU, to a SER")
    for (arms, label), (colour, _, marker) in zip(kinds, STYLES, strict=False):
        points = [pair for arm in arms for pair in ser_and_cost(system, runs.of(system.name, arm))]
        if points:
            face = "none" if label == "GELU" else colour
            axes.plot(*zip(*points, strict=True), marker, color=colour, mfc=face, ms=3.5, mew=0.6, label=label)
    axes.axhline(0, color=BLACK, linewidth=0.6)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(title=system.name, xlabel="SER of the worst site, dB", ylabel=f"cost, {unit(system)}")
    axes.legend(fontsize=7, frameon=False)


FIGURES: dict[str, Callable[[Systems, Runs], Figure | None]] = {
    "swap": swap_costs_of_all,
    "epochs": swap_over_epochs,
    "ser": costs_by_ser,
    "hardness": hardness_over_epochs,
    "profiles": hardness_over_depth,
    "ranks": ranks,
    "grid": grids,
}
