"""The swap on trial: sites become ReLU and corrections are made while a metric is watched, and can all be undone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ._scores import Metric
from .correction import BiasCorrection
from .modules import LambdaGELU


class Trial:
    """Which sites become ReLU, and which corrections are kept, as the metric says.

    Args:
        sites: those to swap, by name.
        corrections: of those sites that have one.
        facts: what the report says of each site, to which `measured_cost` and rejected corrections are added.
    """

    def __init__(
        self,
        metric: Metric,
        sites: Mapping[str, LambdaGELU],
        corrections: Mapping[str, BiasCorrection],
        facts: Mapping[str, dict[str, Any]],
    ) -> None:
        self._metric = metric
        self._sites = sites
        self._corrections = corrections
        self._facts = facts
        self._swapped: list[str] = []
        self._kept: list[str] = []  # whose correction is in the layers now

    def run(self, max_loss: float | None, order: str) -> tuple[list[str], dict[str, float]]:
        """The sites that shall be ReLU, and the metric by stage; the sites are λ-GELU again, the corrections stay.

        An exception takes the corrections back too.
        """
        try:
            return self._run(max_loss, order)
        except BaseException:
            for name in list(self._kept):
                self._take_back(name)
            raise
        finally:
            for name in list(self._swapped):
                self._swap_back(name)

    def _run(self, max_loss: float | None, order: str) -> tuple[list[str], dict[str, float]]:
        before = self._metric()
        if math.isnan(before):
            raise ValueError("evaluate gives NaN for the model as it stands, before anything is swapped")
        names = self._by_harm(before) if order == "harm" else list(self._sites)
        if max_loss is None:
            for name in names:
                self._swap(name)
            swapped = score = self._metric()
            for name in names:
                score = self._corrected(name, score)
        else:
            swapped, score = self._swapped_within(names, before, max_loss)
        metrics = {"before": before, "swapped": swapped}
        if self._corrections:
            metrics["corrected"] = score
        return list(self._swapped), metrics

    def _by_harm(self, before: float) -> list[str]:
        costs = {}
        for name in self._sites:
            self._swap(name)
            costs[name] = self._metric.cost(self._metric(), before)
            self._swap_back(name)
            self._facts[name]["measured_cost"] = costs[name]
        return sorted(costs, key=costs.__getitem__)

    def _swapped_within(self, names: list[str], before: float, max_loss: float) -> tuple[float, float]:
        """The metric after the swap of as many sites as `max_loss` allows, without and with their corrections."""
        score = before
        for name in names:
            self._swap(name)
            now = self._corrected(name, self._metric())
            if self._metric.cost(now, before) > max_loss:
                if name in self._kept:
                    self._take_back(name)
                self._swap_back(name)
                break
            score = now
        for name in self._sites:
            if name not in self._swapped:
                self._facts[name]["correction"] = None
        if not self._kept:
            return score, score
        kept = list(self._kept)
        for name in kept:
            self._take_back(name)
        swapped = self._metric()
        for name in kept:
            self._correct(name)
        return swapped, score

    def _corrected(self, name: str, score: float) -> float:
        """The metric after the correction of a site, where that improves it; else what it was."""
        if name not in self._corrections:
            return score
        self._correct(name)
        corrected = self._metric()
        if self._metric.improves(corrected, score):
            return corrected
        self._take_back(name)
        self._facts[name]["correction"] = f"rejected: {score:.6g} → {corrected:.6g}"
        return score

    def _swap(self, name: str) -> None:
        self._sites[name]._substituted += 1
        self._swapped.append(name)

    def _swap_back(self, name: str) -> None:
        self._sites[name]._substituted -= 1
        self._swapped.remove(name)

    def _correct(self, name: str) -> None:
        self._kept.append(name)
        self._corrections[name].apply()

    def _take_back(self, name: str) -> None:
        self._corrections[name].undo()
        self._kept.remove(name)
