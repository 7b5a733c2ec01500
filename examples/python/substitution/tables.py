"""The tables of docs/substitution.md, made of the records and of nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from examples.markdown import spread, table

from .records import Record

TITLES = {
    "digits": "digits",
    "fashion-mnist": "Fashion-MNIST",
    "gpt": "GPT",
    "gpt-repeated": "GPT, repeated text",
}
MAIN_TASKS = ("digits", "fashion-mnist", "gpt")
CHECKPOINT_RULES = {"best_as_is": "best as it stands (the paper's)", "best_as_relu": "best as ReLU", "last": "last"}
PROTOCOLS = ("protocol", "protocol-40")
STAGES = ("before", "swapped", "corrected", "recovered")
FIGURE_TEXT = "The score over the run as it stands and as ReLU, SER predicted and measured, and the metric by stage"
BLOCK = "experiments"
"""The name of the markers that the page has for them."""


class Records:
    """Records by task and arm."""

    def __init__(self, found: Iterable[Record]) -> None:
        self._found: dict[tuple[str, str], list[Record]] = {}
        for record in found:
            self._found.setdefault((record["task"], record["arm"]), []).append(record)

    def of(self, task: str, arm: str) -> list[dict[str, Any]]:
        """The figures of every seed, in their order."""
        return list(self.by_seed(task, arm).values())

    def by_seed(self, task: str, arm: str) -> dict[int, dict[str, Any]]:
        runs = sorted(self._found.get((task, arm), []), key=lambda record: record["seed"])
        return {record["seed"]: record["figures"] for record in runs}

    def arms(self, task: str) -> list[str]:
        return [arm for name, arm in self._found if name == task]

    def settings(self, task: str) -> dict[str, Any] | None:
        return next((runs[0]["settings"] for (name, _), runs in self._found.items() if name == task), None)

    def machines(self) -> str:
        seen = {
            f"{m['cpu']} ({m['family_model']}), PyTorch {m['torch']}, one thread"
            for runs in self._found.values()
            for m in (run["machine"] for run in runs)
        }
        return "; ".join(sorted(seen))


def metric_of(figures: dict[str, Any], stage: str) -> float | None:
    return figures[stage]["metric"] if stage in figures else None


def is_perplexity(task: str) -> bool:
    return task.startswith("gpt")


def cost(task: str, before: float, after: float) -> float:
    """What a change costs: in points of accuracy, or in % of the perplexity. Above 0 is worse."""
    return 100 * (after / before - 1) if is_perplexity(task) else before - after


def cell(task: str, runs: list[dict[str, Any]], get: Callable[[dict[str, Any]], float | None]) -> str:
    """Over the seeds; a perplexity seed by seed, since the seeds of the GPT differ more than anything else."""
    values = [value for run in runs if (value := get(run)) is not None]
    if is_perplexity(task):
        return " / ".join(f"{value:.3f}" for value in values) or "–"
    return spread(values, 2)


# --- the networks -----------------------------------------------------------------------------------------------------


def networks(records: Records, task: str) -> str:
    """The metric by stage, of every way to a ReLU network and of those that nothing is done to."""

    def stages(arm: str) -> list[str]:
        runs = records.of(task, arm)
        return [cell(task, runs, lambda run, stage=stage: metric_of(run, stage)) for stage in STAGES]

    def from_scratch(arm: str) -> list[str]:
        longer = cell(task, records.of(task, f"{arm}-continued"), lambda run: metric_of(run, "recovered"))
        return [cell(task, records.of(task, arm), lambda run: metric_of(run, "test")), "–", "–", longer]

    def paper(point: str) -> list[str]:
        runs = records.of(task, "paper")
        found = [cell(task, runs, lambda run, s=s: run[point][s]["metric"]) for s in ("before", "swapped")]
        return [*found, "–", "–"]

    rows = [
        ["ReLU from scratch", *from_scratch("relu")],
        ["GELU, left a GELU network", *from_scratch("gelu")],
        ["GELU checkpoint → ReLU", *stages("recovered")],
        ["λ-GELU, this protocol, 30 dB", *stages("protocol")],
        ["λ-GELU, this protocol, 40 dB", *stages("protocol-40")],
        ["λ-GELU, the paper's, swapped at the last step", *paper("last")],
        ["λ-GELU, the paper's, swapped at the best validation score", *paper("best_as_is")],
    ]
    rows = [row for row in rows if any(entry != "–" for entry in row[1:])]
    return table(["network", "before", "swapped", "corrected", "recovered, or trained on"], rows)


# --- the marks --------------------------------------------------------------------------------------------------------


def marks(records: Records) -> str:
    """What the project asks of itself, beside what was found."""
    rows = [
        ["SER from the histogram beside the direct measurement: largest difference, dB", "≤ 0.1"]
        + [_mark([_ser_difference(run) for run in _every_protocol(records, task)], max, 0.1, 3) for task in MAIN_TASKS],
        ["SER where 30 dB were asked, when the hardening has ended, dB", "30 ± 0.5"]
        + [_reached(records, task, "hardened_sites") for task in MAIN_TASKS],
        ["the same at the swap, some steps later, dB", "30 ± 0.5"]
        + [_reached(records, task, "sites") for task in MAIN_TASKS],
        ["the swap after hardening to 30 dB costs", "≤ 0.1 points, ≤ 0.2 %"]
        + [_cost_mark(records, task, "protocol", "swapped", points=0.1, percent=0.2) for task in MAIN_TASKS],
        ["the swap after hardening to 40 dB costs", "≤ 0.1 points, ≤ 0.2 %"]
        + [_cost_mark(records, task, "protocol-40", "swapped", points=0.1, percent=0.2) for task in MAIN_TASKS],
        ["the swap after hardening to 30 dB, biases corrected, costs", "≤ 0.1 points, ≤ 0.2 %"]
        + [_cost_mark(records, task, "protocol", "corrected", points=0.1, percent=0.2) for task in MAIN_TASKS],
        ["a GELU checkpoint, corrected and recovered in 10 % of its steps, costs", "≤ 0.5 % perplexity"]
        + [_cost_mark(records, task, "recovered", "recovered", points=None, percent=0.5) for task in MAIN_TASKS],
        ["the same beside the GELU network that trains on for as many steps", "–"]
        + [_beside(records, task, "recovered", "gelu-continued") for task in MAIN_TASKS],
        ["the same beside ReLU from scratch with as many steps", "–"]
        + [_beside(records, task, "recovered", "relu-continued") for task in MAIN_TASKS],
        ["this protocol's ReLU network beside ReLU from scratch with as many steps", "–"]
        + [_beside(records, task, "protocol", "relu", stage="test") for task in MAIN_TASKS],
    ]
    return table(["", "asked", *(TITLES[task] for task in MAIN_TASKS)], rows)


def _every_protocol(records: Records, task: str) -> list[dict[str, Any]]:
    return [run for arm in PROTOCOLS for run in records.of(task, arm)]


def _ser_difference(run: dict[str, Any]) -> float:
    return max(abs(site["predicted_ser_db"] - site["ser_db"]) for site in run["sites"].values())


def _verdict(reached: bool) -> str:
    return "yes" if reached else "**no**"


def _mark(values: list[float], worst: Callable[[list[float]], float], bound: float, digits: int) -> str:
    if not values:
        return "–"
    return f"{worst(values):.{digits}f}: {_verdict(worst(values) <= bound)}"


def _reached(records: Records, task: str, key: str) -> str:
    """Over all sites and seeds. λ never falls, so a site is above where it learned more than its target, or σ grew."""
    found = [site["ser_db"] for run in records.of(task, "protocol") for site in run.get(key, {}).values()]
    if not found:
        return "–"
    below, above = sum(value < 29.5 for value in found), sum(value > 30.5 for value in found)
    text = f"{min(found):.3f} to {max(found):.3f}: "
    if below:
        return f"{text}**{below} of {len(found)} sites below**"
    return text + (f"none below, {above} of {len(found)} sites above" if above else "yes")


def _unit(task: str) -> str:
    return "%" if is_perplexity(task) else "points"


def _cost_mark(
    records: Records, task: str, arm: str, stage: str, *, points: float | None, percent: float | None
) -> str:
    bound = percent if is_perplexity(task) else points
    runs = [run for run in records.of(task, arm) if stage in run]
    costs = [cost(task, run["before"]["metric"], run[stage]["metric"]) for run in runs]
    if not costs:
        return "–"
    text = f"{spread(costs, 2)} {_unit(task)}"
    return text if bound is None else f"{text}: {_verdict(statistics.mean(costs) <= bound)}"


def _beside(records: Records, task: str, arm: str, other: str, stage: str = "recovered") -> str:
    """What the network of an arm costs beside another's of the same seed."""
    ours, others = records.by_seed(task, arm), records.by_seed(task, other)
    costs = [
        cost(task, others[seed][stage]["metric"], ours[seed]["recovered"]["metric"]) for seed in ours if seed in others
    ]
    return f"{spread(costs, 2)} {_unit(task)}" if costs else "–"


# --- further tables ---------------------------------------------------------------------------------------------------


def sites(records: Records, task: str) -> str:
    """SER by site: predicted from the histogram, measured, with λ and κ; the mean over the seeds."""
    runs = records.of(task, "protocol")
    if not runs:
        return ""

    def mean(name: str, key: str) -> float:
        return statistics.mean(run["sites"][name][key] for run in runs)

    rows = [
        [f"`{name}`", f"{mean(name, 'hardness'):.2f}", f"{mean(name, 'sigma'):.2f}"]
        + [f"{mean(name, 'effective_hardness'):.2f}", f"{mean(name, 'predicted_ser_db'):.2f}"]
        + [f"{mean(name, 'ser_db'):.2f}", f"{100 * mean(name, 'zeros_after'):.0f} %"]
        for name in runs[0]["sites"]
    ]
    return table(["site", "λ", "σ", "κ", "SER predicted, dB", "SER measured, dB", "zeros after"], rows)


def tries(records: Records, task: str) -> str:
    """Every way of recovery that was tried from the same GELU checkpoints."""
    rows = []
    for arm in sorted(arm for arm in records.arms(task) if arm.startswith("recovered")):
        runs = records.of(task, arm)
        costs = [cost(task, run["before"]["metric"], run["recovered"]["metric"]) for run in runs]
        how = runs[0]["how"]
        stages = [cell(task, runs, lambda run, stage=stage: metric_of(run, stage)) for stage in STAGES[1:]]
        rows.append([how["correction"], how["rate"], how["distillation"], *stages, f"{spread(costs, 2)} {_unit(task)}"])
    header = ["correction", "learning rate", "distillation", "swapped", "corrected", "recovered", "cost"]
    return table(header, rows) if rows else ""


def best_checkpoints(records: Records) -> str:
    """Which checkpoint each rule picks out of the same run of the paper's protocol, and what its swap costs."""
    rows = []
    for task in (*MAIN_TASKS, "gpt-repeated"):
        runs = records.of(task, "paper")
        settings = records.settings(task)
        if not runs or settings is None:
            continue
        for rule, label in CHECKPOINT_RULES.items():
            picks = [run[rule] for run in runs]
            steps = [pick.get("step", settings["steps"]) / settings["steps"] for pick in picks]
            ser = [min(site["ser_db"] for site in pick["sites"].values()) for pick in picks]
            costs = [cost(task, pick["before"]["metric"], pick["swapped"]["metric"]) for pick in picks]
            swapped = cell(task, picks, lambda pick: pick["swapped"]["metric"])
            rows.append(
                [TITLES[task], label, _range([100 * step for step in steps], " %")]
                + [_range(ser, ""), swapped, f"{spread(costs, 2)} {_unit(task)}"]
            )
    header = ["task", "checkpoint", "part of the run", "SER of its worst site, dB", "as ReLU", "the swap costs"]
    return table(header, rows) if rows else ""


def _range(values: list[float], unit: str) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


# --- the page ---------------------------------------------------------------------------------------------------------


def page(records: Records, figure: str | None = None) -> str:
    """Everything between the two markers."""
    seeds = {task: max((len(records.of(task, arm)) for arm in records.arms(task)), default=0) for task in MAIN_TASKS}
    parts = [
        "Written by `examples/python/substitution/run.py report` from `benchmarks/results/substitution/`, one record "
        f"per run; `run.py run` makes them. {records.machines()}. Means ± standard deviations over "
        + ", ".join(f"{count} seeds ({TITLES[task]})" for task, count in seeds.items() if count)
        + ". Accuracy in %; perplexity per byte, seed 0 / 1 / 2. Above 0, a cost is worse: points of accuracy, "
        "or % of the perplexity, each beside its own seed.",
        marks(records),
    ]
    if figure:
        parts.append(f"![{FIGURE_TEXT}]({figure})")
    for task in MAIN_TASKS:
        if records.arms(task):
            parts += [f"### {TITLES[task]}", networks(records, task), sites(records, task), tries(records, task)]
    best = best_checkpoints(records)
    if best:
        parts += ["### Which checkpoint to swap", best]
    return "\n\n".join(part for part in parts if part)
