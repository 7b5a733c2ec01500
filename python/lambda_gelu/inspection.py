"""What replacing each site by ReLU would cost as it stands, and how hard it has to become for a tolerance."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from os import PathLike
from typing import Any

from torch import nn

from ._table import as_lists, counted, finite_or_text, format_table, to_csv, to_json
from .modules import LambdaGELU
from .sites import find_sites, find_slots
from .statistics import Statistics
from .targets import HardnessCapWarning, suggest_targets

# Half of the last digit in tables. A λ that was taken from the same statistics misses by its rounding to float32.
_SHOWN_DB = 0.05


@dataclass(frozen=True)
class InspectedSite:
    """One site as it stands.

    Attributes:
        name: its first name in the model.
        also_at: further places of the same module.
        count: number of pre-activations seen.
        hardness_min, hardness_mean, hardness_max: over its λ.
        mean, std: of the pre-activations, in their unit.
        effective_hardness: κ = λσ.
        ser_db: 10 log10(E[ReLU(x)²] / E[(ReLU(x) − f(x))²]) in dB at its λ.
        expected_gap: E[ReLU(x) − f(x)] at its λ, in the unit of the outputs.
        zeros_before: share, 0 to 1, of its gates Φ(λx) below 0.01.
        zeros_after: share, 0 to 1, of x ≤ 0: the zeros that ReLU would give.
        target_min, target_mean, target_max: over the λ that reach the tolerance.
        target_ser_db: SER at these, in dB; below the tolerance where the cap was in the way.
        reached: whether `ser_db` is at the tolerance already, to the digit that tables show.
    """

    name: str
    also_at: tuple[str, ...]
    count: int
    hardness_min: float
    hardness_mean: float
    hardness_max: float
    mean: float
    std: float
    effective_hardness: float
    ser_db: float
    expected_gap: float
    zeros_before: float
    zeros_after: float
    target_min: float
    target_mean: float
    target_max: float
    target_ser_db: float
    reached: bool


@dataclass(frozen=True)
class InspectionReport:
    """What :func:`inspect_sites` found; prints as a table.

    Attributes:
        sites: one for every site, in the order of the model.
        tolerance_db: SER in dB that the targets are for.
        cap: the largest target.
    """

    sites: tuple[InspectedSite, ...]
    tolerance_db: float
    cap: float

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings, booleans and finite numbers; ``"inf"`` and ``"nan"`` are text."""
        plain: dict[str, Any] = finite_or_text(asdict(self, dict_factory=as_lists))
        return plain

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """:meth:`to_dict` as strict JSON in UTF-8, also written to `path` where one is given."""
        return to_json(self.to_dict(), path)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """One row per site in UTF-8, a column for every attribute; places of one module are separated by blanks."""
        rows = [asdict(site, dict_factory=as_lists) for site in self.sites]
        to_csv([item.name for item in fields(InspectedSite)], rows, path)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draws λ, its target, κ, SER and zeros of every site into one PNG file.

        Raises:
            ImportError: without matplotlib, with the extra that brings it.
        """
        from .figures import plot_inspection  # noqa: PLC0415 - matplotlib is slow to import, and may be missing

        plot_inspection(self, path)

    def __str__(self) -> str:
        reached = sum(site.reached for site in self.sites)
        lines = [
            f"{reached} of {counted(len(self.sites), 'site')} at {self.tolerance_db:g} dB or above",
            _table(self.sites, self.tolerance_db),
        ]
        capped = f"capped at λ = {self.cap:g}"
        for site in self.sites:
            if site.target_max < self.cap:
                continue
            if site.target_ser_db < self.tolerance_db - _SHOWN_DB:
                lines.append(f"{site.name}: its target is {capped}, where it reaches {site.target_ser_db:.1f} dB")
            elif site.target_min < self.cap:
                lines.append(f"{site.name}: some of its channels are {capped}")
        return "\n".join(lines)


def inspect_sites(
    model: nn.Module,
    statistics: Statistics,
    *,
    tolerance_db: float = 30.0,
    cap: float = 64.0,
    per: str = "layer",
) -> InspectionReport:
    """Says site by site what the swap to ReLU would cost as the model stands, and which λ a tolerance asks for.

    Args:
        model: the model with its sites.
        statistics: of its pre-activations, from :func:`lambda_gelu.observe`; per channel where `per` asks for targets
            per channel.
        tolerance_db: SER in dB that every site is to reach. Default 30 (ours).
        cap: largest target. Default 64 (ours).
        per: ``"layer"``: one target per site; ``"channel"``: one per channel.

    Raises:
        ValueError: for statistics of another model, without data or with activations that are not finite, and where
            `tolerance_db` or `cap` is out of range.
    """
    sites = find_sites(model)
    statistics.check_model(model)
    statistics.require_complete("inspect_sites")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HardnessCapWarning)  # the report names what was capped
        targets = suggest_targets(statistics, tolerance_db, cap=cap, per=per)
    places: dict[LambdaGELU, list[str]] = {}
    for slot in find_slots(model, LambdaGELU):
        places.setdefault(slot.module, []).append(slot.name)
    inspected = []
    for name, site in sites.items():
        histogram, target = statistics[name], targets[name]
        hardness = site.hardness.detach().tolist()
        values = target if isinstance(target, list) else [target]
        at = hardness if len(hardness) > 1 else hardness[0]
        ser_db = histogram.ser_db(at)
        inspected.append(
            InspectedSite(
                name=name,
                also_at=tuple(places.get(site, [name])[1:]),
                count=histogram.count,
                **_spread("hardness", hardness),
                mean=histogram.mean,
                std=histogram.std,
                effective_hardness=histogram.effective_hardness(at),
                ser_db=ser_db,
                expected_gap=histogram.expected_gap(at),
                zeros_before=histogram.near_zero_share(at),
                zeros_after=histogram.zero_share,
                **_spread("target", values),
                target_ser_db=histogram.ser_db(target),
                reached=ser_db >= tolerance_db - _SHOWN_DB,
            )
        )
    return InspectionReport(tuple(inspected), float(tolerance_db), float(cap))


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}_min": min(values), f"{name}_mean": sum(values) / len(values), f"{name}_max": max(values)}


def _table(sites: Sequence[InspectedSite], tolerance_db: float) -> str:
    header = ("site", "λ", "σ", "κ", "SER dB", "gates < 0.01", "x ≤ 0", f"λ for {tolerance_db:g} dB")
    rows = [
        (
            ", ".join((site.name, *site.also_at)),
            _range(site.hardness_min, site.hardness_max),
            f"{site.std:.3g}",
            f"{site.effective_hardness:.3g}",
            f"{site.ser_db:.1f}",
            f"{site.zeros_before:.1%}",
            f"{site.zeros_after:.1%}",
            _range(site.target_min, site.target_max),
        )
        for site in sites
    ]
    return format_table(header, rows)


def _range(low: float, high: float) -> str:
    return f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"
