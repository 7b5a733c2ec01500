"""What the paper leaves open: granularity, targets, onset, rate, schedules, correction, recovery, language models."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from examples.markdown import number, spread, table
from examples.paper.records import Record
from examples.paper.system import System

from .runs import MODES, RULES, STAGES, Runs, cost, metric, swap_costs, unit
from .tables import NETWORKS, Systems, change, digits, seeds, shown

LARGEST_COST = 0.5  # % of the perplexity, which the project allows the swap of a language model

# What differs from the arm uniform, whose λ goes linearly to 7.98 from 25 % of the run on.
ARMS = {
    "uniform": "the paper's protocol",
    "uniform-neurons": "one λ per channel or neuron",
    "uniform-30db": "targets per site: 30 dB, schedule geometric",
    "uniform-40db": "targets per site: 40 dB, schedule geometric",
    "uniform-settled": "onset once λ and loss have settled",
    "uniform-allowed": "λ waits while the loss is too high",
    "uniform-geometric": "schedule geometric",
    "uniform-harmonic": "schedule harmonic",
    "uniform-cosine": "schedule cosine",
    "uniform-hard": "ε = 0.01, λ_target = 79.8",
}
RECOVERED = ("gelu", "gelu-recovered", "uniform", "uniform-recovered")
LABELS = {
    "gelu": "GELU",
    "gelu-recovered": "GELU, trained on after the swap",
    "uniform": "λ-GELU",
    "uniform-recovered": "λ-GELU, trained on after the swap",
}
REFERENCE = "uniform"
_EDGES = (-math.inf, 8, 12, 16, 20, 25, 30, math.inf)  # dB
BANDS = tuple(itertools.pairwise(_EDGES))


def arms(systems: Systems, runs: Runs) -> str:
    """Every study's arm on the test data: what its swap costs by checkpoint, and its ReLU network beside others'."""
    parts = []
    for system in shown(systems, runs):
        found = [arm for arm in ARMS if runs.of(system.name, arm)]
        if found == [REFERENCE] or not found:
            continue
        rows = [_arm(system, runs, arm) for arm in found]
        header = ["arm", "what differs", "worst site at the end, dB", "best checkpoint, epoch", "→ ReLU, test", "costs"]
        header += [
            "last epoch → ReLU, test",
            "costs",
            "best as ReLU, epoch",
            "beside the protocol's",
            "beside ReLU from scratch",
        ]
        parts += [f"### `{system.name}`", table([*header, "seeds"], rows)]
    return "\n\n".join(parts) or "Not run."


def _arm(system: System, runs: Runs, arm: str) -> list[str]:
    found = runs.of(system.name, arm)
    cells = [f"`{arm}`", ARMS[arm], spread(worst_ser(found, "last"), 1), _epoch(found, "best")]
    for rule in ("best", "last"):
        stages = [runs.values(system.name, arm, metric(rule, stage, "test")) for stage in STAGES[:2]]
        costs = swap_costs(runs, system, arm, rule)
        cells += [change(*stages, system), f"{spread(costs, 2)} {unit(system)}"]
    against = "–" if arm == REFERENCE else _beside(system, runs, arm, REFERENCE)
    cells += [_epoch(found, "best_as_relu"), against, _beside(system, runs, arm, "relu")]
    return [*cells, seeds(runs, system, arm)]


def _epoch(found: Sequence[Record], rule: str) -> str:
    return spread([record.end[rule]["epoch"] for record in found], 1)


def worst_ser(found: Sequence[Record], rule: str) -> list[float]:
    """The SER of the worst site, by seed; a site without an error to speak of has none."""
    worst = []
    for record in found:
        values = [site["ser_db"] for site in record.end[rule].get("sites", []) if site["ser_db"] is not None]
        worst += [min(values)] if values else []
    return worst


def from_scratch(systems: Systems, runs: Runs) -> str:
    """The ReLU network that every arm of Table II has led to, beside the one that was trained as such."""
    rows = []
    for system in shown(systems, runs):
        for arm in (arm for arm in NETWORKS if arm != "relu" and runs.of(system.name, arm)):
            beside = [_beside(system, runs, arm, "relu", rule=rule) for rule in RULES]
            rows.append([f"`{system.name}`", NETWORKS[arm], *beside, seeds(runs, system, arm)])
    return table(["system", "network", *RULES.values(), "seeds"], rows) if rows else "Not run."


def summary(systems: Systems, runs: Runs) -> str:
    """Every system that has run in a line, for README: on the test data, by the paper's rule."""
    rows = []
    for system in shown(systems, runs):
        costs = [swap_costs(runs, system, arm) for arm in ("gelu", REFERENCE)]
        cells = [f"{spread(found, 2)} {unit(system)}" if found else "–" for found in costs]
        beside = _beside(system, runs, REFERENCE, "relu", rule="best")
        rows.append([system.title, *cells, beside, seeds(runs, system, REFERENCE)])
    header = ["system", "GELU → ReLU costs", "λ-GELU, hardened → ReLU costs", "that network beside ReLU from scratch"]
    return table([*header, "seeds"], rows) if rows else "Not run."


def _beside(system: System, runs: Runs, arm: str, other: str, *, rule: str = "best_as_relu") -> str:
    """What the ReLU network of an arm costs beside another's, each chosen on held-out data, each seed with itself."""
    ours = metric(rule, "swapped", "test")
    is_relu = other == "relu"
    others = metric("best" if is_relu else "best_as_relu", "before" if is_relu else "swapped", "test")
    costs = runs.paired(system.name, (arm, ours), (other, others), lambda a, b: cost(system, b, a))
    return f"{spread(costs, 2)} {unit(system)}" if costs else "–"


def checkpoints(systems: Systems, runs: Runs) -> str:
    """Which checkpoint each rule picks out of the same runs, and what its swap costs."""
    rows = [
        _checkpoint(system, runs, arm, rule)
        for system in shown(systems, runs)
        for arm in ("gelu", REFERENCE)
        for rule in RULES
        if runs.of(system.name, arm)
    ]
    header = ["system", "network", "checkpoint", "epoch", "mean λ", "worst site, dB", "→ ReLU, test", "costs"]
    return table(header, rows) if rows else "Not run."


def _checkpoint(system: System, runs: Runs, arm: str, rule: str) -> list[str]:
    found = runs.of(system.name, arm)
    stages = [runs.values(system.name, arm, metric(rule, stage, "test")) for stage in STAGES[:2]]
    costs = f"{spread(swap_costs(runs, system, arm, rule), 2)} {unit(system)}"
    epochs = spread([record.end[rule]["epoch"] for record in found], 1)
    hardness, ser = spread(_mean_hardness(found, rule), 2), spread(worst_ser(found, rule), 1)
    return [f"`{system.name}`", LABELS[arm], RULES[rule], epochs, hardness, ser, change(*stages, system), costs]


def _mean_hardness(found: Sequence[Record], rule: str) -> list[float]:
    return [statistics.mean(site["hardness"] for site in record.end[rule]["sites"]) for record in found]


def sites(systems: Systems, runs: Runs) -> str:
    """What the sites are given when the training has ended, from the lowest to the highest: means over the seeds."""
    rows = []
    for system in shown(systems, runs):
        for arm in ("gelu", REFERENCE):
            last = [record.epochs[-1] for record in runs.of(system.name, arm)]
            if last:
                cells = [_range([epoch[key] for epoch in last]) for key in ("hardness", "sigma", "kappa", "ser_db")]
                rows.append([f"`{system.name}`", LABELS[arm], *cells])
    return table(["system", "network", "λ", "σ", "κ = λσ", "SER, dB"], rows) if rows else "Not run."


def _range(found: Sequence[Sequence[float | None]]) -> str:
    known = [[value for value in site if value is not None] for site in zip(*found, strict=True)]
    means = [statistics.mean(site) for site in known if site]
    if not means:
        return "–"
    low, high = number(min(means), 2), number(max(means), 2)
    return low if low == high else f"{low} to {high}"


def costs_by_ser(systems: Systems, runs: Runs) -> str:
    """What the swap costs on the validation data after every epoch of every run, by the SER of its worst site."""
    rows = []
    for system in shown(systems, runs):
        # Arms are the same run until they part: its epochs count once.
        found = sorted(
            {
                (record.seed, number, *pair)
                for record in runs.all_of(system.name)
                for number, pair in enumerate(ser_and_cost(system, [record]))
            }
        )
        cells = []
        for low, high in BANDS:
            costs = [cost for *_, ser, cost in found if low <= ser < high]
            cells.append(f"{spread(costs, 2)} ({len(costs)})" if costs else "–")
        if found:
            rows.append([f"`{system.name}`", unit(system), *cells])
    names = [f"below {high:g} dB" if low == -math.inf else f"{low:g} to {high:g} dB" for low, high in BANDS[:-1]]
    return table(["system", "in", *names, f"{BANDS[-1][0]:g} dB and above"], rows) if rows else "Not run."


def ser_and_cost(system: System, found: Sequence[Record]) -> list[tuple[float, float]]:
    """The SER of the worst site in dB and what the swap costs on the validation data, after every epoch of training."""
    return [
        (min(values), cost(system, epoch["validation"]["metric"], epoch["as_relu"]["metric"]))
        for record in found
        for epoch in record.epochs
        if epoch["epoch"] > 0 and epoch["as_relu"]
        if (values := [value for value in epoch["ser_db"] if value is not None])
    ]


def recovery(systems: Systems, runs: Runs) -> str:
    """The best checkpoint by stage: swapped, its biases corrected, trained on; and what is left of the cost."""
    rows = []
    for system in shown(systems, runs):
        for arm in RECOVERED:
            if not runs.of(system.name, arm):
                continue
            stages = [runs.values(system.name, arm, metric("best", stage, "test")) for stage in STAGES]
            if len(stages[2]) == 0:
                continue
            costs = [swap_costs(runs, system, arm, stage=stage) for stage in STAGES[1:]]
            rows.append(
                [f"`{system.name}`", LABELS[arm], *(spread(values, digits(system)) for values in stages)]
                + [f"{spread(values, 2)} {unit(system)}" if values else "–" for values in costs]
                + [seeds(runs, system, arm)]
            )
    header = ["system", "network", "before", "swapped", "corrected", "trained on", "swap costs", "corrected costs"]
    return table([*header, "trained on costs", "seeds"], rows) if rows else "Not run."


def language_models(systems: Systems, runs: Runs) -> str:
    """The perplexity of the test text before and after the swap, beside ReLU from scratch, by arm and checkpoint."""
    rows = []
    for system in shown(systems, runs):
        if system.higher_is_better:
            continue
        every = [
            arm for arm in ("gelu", "gelu-recovered", *MODES, *ARMS, "uniform-recovered") if runs.of(system.name, arm)
        ]
        for arm in dict.fromkeys(every):
            points = [(rule, "swapped") for rule in RULES] + [("best", stage) for stage in STAGES[2:]]
            for rule, stage in points:
                if runs.values(system.name, arm, metric(rule, stage, "test")):
                    rows.append(_language_model(system, runs, arm, rule, stage))
        scratch = runs.values(system.name, "relu", metric("best", "before", "test"))
        if scratch:
            rows.append([f"`{system.name}`", "`relu`", "best as it stands", spread(scratch, 3), "–", "–", "–"])
    header = ["system", "arm", "checkpoint", "before", "after", f"costs (≤ {LARGEST_COST:g} %)"]
    return table([*header, "after, beside ReLU from scratch"], rows) if rows else "Not run."


def _language_model(system: System, runs: Runs, arm: str, rule: str, stage: str) -> list[str]:
    before, after = (metric(rule, name, "test") for name in ("before", stage))
    costs = swap_costs(runs, system, arm, rule, stage=stage)
    scratch = metric("best", "before", "test")
    against = runs.paired(system.name, (arm, after), ("relu", scratch), lambda ours, relu: cost(system, relu, ours))
    label = RULES[rule] if stage == "swapped" else f"{RULES[rule]}, {stage}"
    verdict = "" if not costs else ": yes" if max(costs) <= LARGEST_COST else ": **no**"
    values = [spread(runs.values(system.name, arm, get), 3) for get in (before, after)]
    return [
        *(f"`{system.name}`", f"`{arm}`", label, *values),
        *(f"{spread(costs, 2)} %{verdict}", f"{spread(against, 2)} %" if against else "–"),
    ]
