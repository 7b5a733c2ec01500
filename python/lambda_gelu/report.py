"""What the way to ReLU did to a model, site by site and stage by stage."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from ._table import as_lists, counted, finite_or_text, format_table, to_csv, to_json

STAGES = ("before", "swapped", "corrected", "recovered")
"""The stages at which a :class:`SubstitutionReport` has the metric: as λ-GELU, right after the swap, after the bias
correction, after the recovery."""

LITTLE_LOSS_DB = 22.0
"""SER in dB from which the swap cost little wherever it was tried (docs/substitution.md): a mark for the eye, ours."""


@dataclass(frozen=True)
class SubstitutedSite:
    """One site on its way to ReLU. What nobody measured is None.

    Attributes:
        name: its first name in the model.
        also_at: further places of the same module.
        hardness_min, hardness_mean, hardness_max: over its λ, before the swap.
        gate_gap: sqrt(2/π) / hardness_min, the largest L1 distance of its gates from ReLU's step.
        effective_hardness: κ = λσ, σ the standard deviation of its pre-activations.
        ser_db: 10 log10(E[ReLU(x)²] / E[(ReLU(x) − f(x))²]) in dB, as predicted from the statistics.
        measured_ser_db: the same, measured on tensors, in dB.
        expected_gap: E[ReLU(x) − f(x)], which the swap adds to the outputs in the mean, in their unit.
        zeros_before: share, 0 to 1, of its gates Φ(λx) below 0.01 before the swap.
        zeros_after: share, 0 to 1, of x ≤ 0: the exact zeros of ReLU.
        predicted_cost: what the swap of this site alone was expected to add to the loss.
        measured_cost: what it changed the metric by; above 0 is worse.
        correction: what became of the bias correction: where it was folded in (``"fc2.bias"``), or why not
            (``"rejected: ..."``, ``"no successor: ..."``).
        substituted: False where the site was left a λ-GELU.
    """

    name: str
    also_at: tuple[str, ...]
    hardness_min: float
    hardness_mean: float
    hardness_max: float
    gate_gap: float
    effective_hardness: float | None = None
    ser_db: float | None = None
    measured_ser_db: float | None = None
    expected_gap: float | None = None
    zeros_before: float | None = None
    zeros_after: float | None = None
    predicted_cost: float | None = None
    measured_cost: float | None = None
    correction: str | None = None
    substituted: bool = True


@dataclass(frozen=True)
class SubstitutionReport:
    """What the way to ReLU did, and what it cost.

    ``print`` shows a table of the sites and one of the metric, with the columns that have values.

    Attributes:
        sites: one for every site, in the order of the model.
        metric_name: what the metric is called in tables and figures, with its unit.
        higher_is_better: of the metric; None where nobody said.
        metrics: the metric by stage, in the order of :data:`STAGES`; what was not measured is absent.

    Raises:
        ValueError: for a stage that does not exist.
    """

    sites: tuple[SubstitutedSite, ...]
    metric_name: str = "metric"
    higher_is_better: bool | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.metrics if stage not in STAGES]
        if unknown:
            raise ValueError(f"metrics has stages {', '.join(STAGES)}, got {', '.join(map(repr, unknown))}")
        object.__setattr__(self, "sites", tuple(self.sites))
        ordered = {stage: float(self.metrics[stage]) for stage in STAGES if stage in self.metrics}
        object.__setattr__(self, "metrics", ordered)

    @property
    def substituted(self) -> tuple[str, ...]:
        """Names of the sites that are ReLU now."""
        return tuple(site.name for site in self.sites if site.substituted)

    @property
    def left(self) -> tuple[str, ...]:
        """Names of the sites that are still λ-GELU."""
        return tuple(site.name for site in self.sites if not site.substituted)

    def cost(self, stage: str) -> float | None:
        """By how much the metric at a stage is worse than before, in its unit; below 0 where it is better.

        None where the metric is not known at both stages, or nobody said which direction is better.
        """
        if stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
        if self.higher_is_better is None or not {"before", stage} <= self.metrics.keys():
            return None
        change = self.metrics[stage] - self.metrics["before"]
        return -change if self.higher_is_better else change

    def with_metrics(self, **metrics: float) -> SubstitutionReport:
        """The same report with the metric at more stages, as ``with_metrics(recovered=5.81)``."""
        return replace(self, metrics={**self.metrics, **metrics})

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings, booleans and finite numbers.

        What is not finite becomes ``"inf"``, ``"-inf"`` or ``"nan"``, since JSON has no such numbers.
        """
        plain: dict[str, Any] = finite_or_text(asdict(self, dict_factory=as_lists))
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SubstitutionReport:
        """The report that :meth:`to_dict` wrote.

        Raises:
            ValueError: for keys that are missing or unknown, and values of another kind, naming them.
        """
        values = _checked_keys(cls, plain, "report")
        sites = []
        for index, site in enumerate(_checked(values["sites"], list, "sites")):
            where = f"sites[{index}]"
            known = _checked_keys(SubstitutedSite, site, where)
            for key in _NUMBERS & known.keys():
                if key not in _REQUIRED[SubstitutedSite] and known[key] is None:
                    continue
                known[key] = _number(known[key], f"{where}.{key}")
            known["also_at"] = tuple(_checked(known["also_at"], list, f"{where}.also_at"))
            sites.append(SubstitutedSite(**known))
        metrics = _checked(values.get("metrics", {}), dict, "metrics")
        numbers = {stage: _number(value, f"metrics.{stage}") for stage, value in metrics.items()}
        return cls(**{**values, "sites": tuple(sites), "metrics": numbers})

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """:meth:`to_dict` as strict JSON in UTF-8, also written to `path` where one is given."""
        return to_json(self.to_dict(), path)

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> SubstitutionReport:
        """The report that :meth:`to_json` wrote to a file."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def to_csv(self, path: str | PathLike[str]) -> None:
        """One row per site in UTF-8, a column for every attribute; what is None is empty.

        Places of one module are separated by blanks.
        """
        rows = [asdict(site, dict_factory=as_lists) for site in self.sites]
        to_csv([item.name for item in fields(SubstitutedSite)], rows, path)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draws λ, κ, SER and zeros of every site and the metric by stage into one PNG file.

        Raises:
            ImportError: without matplotlib, with the extra that brings it.
        """
        from .figures import plot_substitution  # noqa: PLC0415 - matplotlib is slow to import, and may be missing

        plot_substitution(self, path)

    def __str__(self) -> str:
        are = "is" if len(self.sites) == 1 else "are"
        share = f"{len(self.substituted)} of " if self.left else ""
        lines = [f"{share}{counted(len(self.sites), 'site')} {are} ReLU now"]
        if self.left:
            lines.append(f"still λ-GELU: {', '.join(self.left)}")
        lines.append(_site_table(self.sites))
        if self.metrics:
            lines += ["", self._metric_table()]
        return "\n".join(lines)

    def _metric_table(self) -> str:
        rows = []
        for stage, value in self.metrics.items():
            change = value - self.metrics["before"] if "before" in self.metrics else math.nan
            shown = "" if stage == "before" or math.isnan(change) else f"{change:+.4g}"
            rows.append((stage, f"{value:.6g}", shown))
        better = {True: "higher is better", False: "lower is better", None: ""}[self.higher_is_better]
        header = f"{self.metric_name}, {better}" if better else self.metric_name
        return format_table(("stage", header, "against before"), rows)


_NUMBERS = {item.name for item in fields(SubstitutedSite) if "float" in str(item.type)}
_REQUIRED: dict[type, list[str]] = {
    kind: [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]
    for kind in (SubstitutedSite, SubstitutionReport)
}

_COLUMNS = (
    ("λ min", "hardness_min", "{:.4g}"),
    ("λ mean", "hardness_mean", "{:.4g}"),
    ("λ max", "hardness_max", "{:.4g}"),
    ("gate gap", "gate_gap", "{:.4g}"),
    ("κ", "effective_hardness", "{:.3g}"),
    ("SER dB", "ser_db", "{:.1f}"),
    ("measured dB", "measured_ser_db", "{:.1f}"),
    ("E[gap]", "expected_gap", "{:.3g}"),
    ("zeros before", "zeros_before", "{:.1%}"),
    ("zeros after", "zeros_after", "{:.1%}"),
    ("predicted cost", "predicted_cost", "{:.3g}"),
    ("measured cost", "measured_cost", "{:.3g}"),
    ("correction", "correction", "{}"),
)


def _site_table(sites: tuple[SubstitutedSite, ...]) -> str:
    columns = [column for column in _COLUMNS if any(getattr(site, column[1]) is not None for site in sites)]
    rows = [
        [", ".join((site.name, *site.also_at))]
        + [_shown(getattr(site, attribute), style) for _, attribute, style in columns]
        for site in sites
    ]
    return format_table(["site", *(title for title, _, _ in columns)], rows)


def _shown(value: Any, style: str) -> str:
    return "-" if value is None else style.format(value)


def _number(value: Any, where: str) -> float:
    try:
        return float(value)  # also of "inf", "-inf" and "nan"
    except (TypeError, ValueError):
        raise _not_a_report(where, f"a number, got {value!r}") from None


def _checked(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise _not_a_report(where, f"a {kind.__name__}, got {type(value).__name__}")
    return value


def _checked_keys(kind: type, plain: Any, where: str) -> dict[str, Any]:
    if not isinstance(plain, Mapping):
        raise _not_a_report(where, f"a mapping, got {type(plain).__name__}")
    known = {item.name for item in fields(kind)}
    unknown = [str(key) for key in plain if key not in known]
    missing = [key for key in _REQUIRED[kind] if key not in plain]
    if unknown or missing:
        wrong = [f"unknown {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(missing)
        raise _not_a_report(where, "; ".join(wrong))
    return dict(plain)


def _not_a_report(where: str, why: str) -> ValueError:
    return ValueError(f"{where} is not what a SubstitutionReport writes: {why}")
