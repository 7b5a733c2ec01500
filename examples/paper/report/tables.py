"""The paper's tables beside what the records hold: Table II, best epochs, drift, ranks, the grid; seconds; C++."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from examples.markdown import number, spread, table
from examples.paper.records import Record
from examples.paper.system import System

from . import published
from .runs import (
    MODES,
    Runs,
    drift,
    enough,
    learned_hardness,
    learning_epochs,
    metric,
    rank_correlations,
    swap_costs,
    unit,
)

Systems = Mapping[str, System]

NETWORKS = {
    "gelu": "GELU → ReLU",
    "uniform": "λ-GELU, uniform → ReLU",
    "increasing": "λ-GELU, increasing → ReLU",
    "decreasing": "λ-GELU, decreasing → ReLU",
    "relu": "ReLU from scratch",
}
OVERHEAD = ("as_relu", "statistics", "log")
LARGEST_OVERHEAD = 5.0  # % of an epoch, which the project asks of the runner
GRID_ARM = re.compile(r"uniform-tau(?P<temperature>[\d.]+)-alpha(?P<lr_multiplier>[\d.]+)")


def shown(systems: Systems, runs: Runs) -> list[System]:
    """Those that have run, in the order of the paper's rows."""
    return [system for system in ordered(systems) if runs.has(system.name)]


def ordered(systems: Systems) -> list[System]:
    return sorted(systems.values(), key=lambda system: published.ROWS.index(system.row))


def digits(system: System) -> int:
    return 2 if system.higher_is_better else 3


def change(before: Sequence[float], after: Sequence[float], system: System) -> str:
    if not after:
        return spread(before, digits(system))
    return f"{spread(before, digits(system))} → {spread(after, digits(system))}"


def seeds(runs: Runs, system: System, arm: str) -> str:
    count = len(runs.of(system.name, arm))
    return str(count) if count >= enough(system) else f"{count}: too few"


# --- Table II ---------------------------------------------------------------------------------------------------------


def table_2(systems: Systems, runs: Runs) -> str:
    """Every system of every row of the paper; those without a record say so."""
    rows = []
    for system in ordered(systems):
        if not runs.has(system.name):
            paper = "; ".join(f"{name} {_paper(system.row, arm)}" for name, arm in _PAPERS.items())
            rows.append([system.row, f"`{system.name}`", "all", paper, "–", "not run", "–", "–", "–", "0"])
            continue
        for arm, label in NETWORKS.items():
            found = [
                [runs.values(system.name, arm, metric("best", stage, split)) for stage in ("before", "swapped")]
                for split in ("validation", "test")
            ]
            costs = [_costs(runs, system, arm, split) for split in ("validation", "test")]
            has_run = bool(runs.of(system.name, arm))
            cells = [cell for pair, c in zip(found, costs, strict=True) for cell in (change(*pair, system), c)]
            rows.append(
                [system.row, f"`{system.name}`", label, _paper(system.row, arm), _paper_cost(system.row, arm)]
                + (cells if has_run else ["not run", "–", "–", "–"])
                + [seeds(runs, system, arm) if has_run else "0"]
            )
    header = ["data", "system", "network", "the paper", "costs", "ours, validation", "costs", "ours, test", "costs"]
    return table([*header, "seeds"], rows)


_PAPERS = {"GELU": "gelu", "λ-GELU": "annealed"}


def _paper(row: str, arm: str) -> str:
    if arm == "relu":
        return "–"
    name = "gelu" if arm == "gelu" else "annealed"
    found = published.swap(row, name)
    return published.NO_SWAP[name] if found is None else f"{found[0]} → {found[1]}"


def _paper_cost(row: str, arm: str) -> str:
    found = None if arm == "relu" else published.swap(row, "gelu" if arm == "gelu" else "annealed")
    return "–" if found is None else number(found[0] - found[1], 0)


def _costs(runs: Runs, system: System, arm: str, split: str) -> str:
    found = swap_costs(runs, system, arm, split=split)
    return f"{spread(found, 2)} {unit(system)}" if found else "–"


def not_finished(runs: Runs) -> str:
    """What is in no table, and why."""
    lines = []
    for record in runs.unfinished:
        name = f"`{record.system}`, {record.arm}, seed {record.seed}"
        if record.end is None:
            lines.append(f"- {name}: not finished, {record.epochs[-1]['epoch'] if record.epochs else 0} epochs")
        else:
            where = record.end["where"]
            at = f" in epoch {where['epoch']}, step {where['step']}" if where else ""
            lines.append(f"- {name}: {record.end['status']}{at}")
    return "\n".join(["Runs that are in no table:", "", *lines]) if lines else "Every run that has a record finished."


def settings(systems: Systems, runs: Runs) -> str:
    """Of every system that has run: its size, its settings, machine, time and command. All from the records."""
    rows = []
    for system in shown(systems, runs):
        found = runs.all_of(system.name)
        of = found[0].head["settings"]
        sites = max(map(_site_count, found))  # ReLU networks have none
        parameters = min(map(_parameter_count, found))  # beside them, one λ per neuron adds up
        minutes = statistics.median(record.end["seconds"] / 60 for record in found)
        rate = "constant" if of["final_rate"] == 1 else f"cosine to {of['final_rate']:g}"
        rows.append(
            [
                f"`{system.name}`",
                system.title,
                "the paper's" if system.full_size else "reduced",
                f"{parameters:,}",
                str(sites),
            ]
            + [f"{of['optimizer']}, {of['lr']:g}, {rate}", f"{of['weight_decay']:g}", str(of["batch_size"])]
            + [str(of["epochs"]), f"{of['temperature']:g}, {of['lr_multiplier']:g}", str(len(found)), f"{minutes:.1f}"]
            + [machines(found), f"`{_command(system, found)}`"]
        )
    header = ["system", "what", "size", "parameters", "sites", "optimizer, learning rate", "weight decay", "batch"]
    return table([*header, "epochs", "τ, α", "runs", "minutes of a run", "machine", "command"], rows)


def _site_count(record: Record) -> int:
    return len(record.head["sites"])


def _parameter_count(record: Record) -> int:
    return record.head["parameters"]


def _command(system: System, found: Sequence[Record]) -> str:
    epochs = found[0].head["settings"]["epochs"]
    shorter = f" --epochs {epochs}" if epochs != system.epochs else ""
    on_gpu = " --device cuda" if "NVIDIA" in found[0].head["machine"]["device"] else ""
    return f"python -m examples.paper.run {system.name}{shorter}{on_gpu}"


def _last_epoch(record: Record) -> int:
    return record.epochs[-1]["epoch"]


def machines(found: Iterable[Record]) -> str:
    heads = (record.head["machine"] for record in found)
    return "; ".join(sorted({f"{machine['device']}, PyTorch {machine['torch']}" for machine in heads}))


# --- what λ learns ----------------------------------------------------------------------------------------------------


def hardness(systems: Systems, runs: Runs) -> str:
    """λ at the end of its learning and what came before it, by mode: the paper's Table I, as far as it is legible."""
    rows = []
    for system in shown(systems, runs):
        arms = {mode: runs.learned(system.name, mode) for mode in MODES} | {"uniform, per neuron": "uniform-neurons"}
        for mode, arm in arms.items():
            found = runs.of(system.name, arm)
            if not found:
                continue
            ends = [learning_epochs(record)[-1] for record in found]
            low, high = (
                [pick(end.get(f"hardness_{pick.__name__}", end["hardness"])) for end in ends] for pick in (min, max)
            )
            hardened = runs.of(system.name, mode if mode in MODES else arm)
            whole = [value for record in hardened if (value := drift(record.epochs)) is not None]
            learning = [value for record in found if (value := drift(learning_epochs(record))) is not None]
            means = [statistics.mean(end["hardness"]) for end in ends]
            rows.append(
                [f"`{system.name}`", mode, _how_long(arm, ends[0]["epoch"]), spread(means, 3), spread(low, 3)]
                + [spread(high, 3), spread(learning, 4), spread(whole, 4), seeds(runs, system, arm)]
            )
    header = ["system", "init", "λ learned in", "mean λ", "lowest λ", "highest λ", "drift while learning"]
    return table([*header, "drift of the hardened runs", "seeds"], rows)


def _how_long(arm: str, epochs: int) -> str:
    counted = f"{epochs} epoch" + "s" * (epochs != 1)
    return f"all {counted}" if arm.endswith("-learned") else f"the first {counted}"


def rank_table(systems: Systems, runs: Runs) -> str:
    """Spearman's correlation of the profiles of two inits: at the start, halfway and at the end of the learning."""
    rows = []
    for system in shown(systems, runs):
        for first, second in mode_pairs():
            found = rank_correlations(runs, system.name, first, second)
            arm = runs.learned(system.name, first)
            if not found or not runs.of(system.name, arm):
                continue
            last = learning_epochs(runs.of(system.name, arm)[0])[-1]["epoch"]
            cells = [spread(found[epoch], 2) if epoch in found else "undefined" for epoch in (0, 1, last // 2, last)]
            count = len(found.get(last, []))
            rows.append([f"`{system.name}`", f"{first}, {second}", *cells, _how_long(arm, last), str(count)])
    header = ["system", "modes", "before training", "after one epoch", "halfway", "when λ is learned", "learned in"]
    return table([*header, "pairs"], rows)


def mode_pairs() -> Iterator[tuple[str, str]]:
    yield "uniform", "increasing"
    yield "uniform", "decreasing"
    yield "increasing", "decreasing"


def best_epochs(systems: Systems, runs: Runs) -> str:
    """The epoch of the best validation score, as the paper's Table I; and that of the hardened runs."""
    rows = []
    for system in shown(systems, runs):
        paper = published.BEST_EPOCHS[system.row]
        for arm in ("gelu", "relu", *MODES):
            learned, hardened = runs.learned(system.name, arm), runs.of(system.name, arm)
            ours = runs.of(system.name, learned) if learned != arm or arm in ("gelu", "relu") else []
            if not hardened and not ours:
                continue
            epochs = _last_epoch((hardened or ours)[0])
            of = published_epochs(system.row)
            is_mode = arm in MODES
            rows.append(
                [f"`{system.name}`", arm, f"{paper[arm]} of {of}", _best_epochs(ours)]
                + [_best_epochs(hardened) if is_mode else "–", str(epochs)]
                + [f"{len(ours)}, {len(hardened)}" if is_mode else str(len(ours))]
            )
    header = ["system", "arm", "the paper", "ours", "ours, hardened", "of epochs", "seeds"]
    return table(header, rows)


def published_epochs(row: str) -> str:
    """How long the paper trains: it does not say, and its best epochs look like these."""
    return {"Adult": "50?", "FMNIST": "50?", "TinyImageNet": "90?", "WikiText-2": "10?"}.get(row, "75?")


def _best_epochs(found: Sequence[Record]) -> str:
    return spread([record.end["best"]["epoch"] for record in found], 1)


# --- the grid ---------------------------------------------------------------------------------------------------------


def grid(runs: Runs, system: str) -> dict[tuple[float, float], list[Record]]:
    """The runs of every (τ, α)."""
    found: dict[tuple[float, float], list[Record]] = {}
    for arm in runs.arms(system):
        matched = GRID_ARM.fullmatch(arm)
        if matched:
            key = (float(matched["temperature"]), float(matched["lr_multiplier"]))
            found[key] = runs.of(system, arm)
    return found


def grid_drift(found: Sequence[Record]) -> list[float]:
    return [value for record in found if (value := drift(learning_epochs(record))) is not None]


def grid_score(runs: Runs, system: System, found: Sequence[Record]) -> list[float]:
    """ΔBVS: the best validation score beside GELU's, each seed with itself."""
    gelu = runs.by_seed(system.name, "gelu")
    best = metric("best", "before", "validation")
    return [best(record) - best(gelu[record.seed]) for record in found if record.seed in gelu]


def grid_tables(systems: Systems, runs: Runs) -> str:
    """Drift, and the best validation score beside GELU's, as the paper's Figure 1."""
    parts = []
    for system in shown(systems, runs):
        found = grid(runs, system.name)
        if not found:
            continue
        temperatures, multipliers = (sorted({key[axis] for key in found}) for axis in (0, 1))
        rows = [
            [f"τ = {temperature:g}"] + [_grid_cell(runs, system, found.get((temperature, m), [])) for m in multipliers]
            for temperature in temperatures
        ]
        epochs = learning_epochs(next(iter(found.values()))[0])[-1]["epoch"]
        counts = sorted({len(records) for records in found.values()})
        parts.append(
            f"`{system.name}`: drift (best validation score beside GELU's, {unit(system)}), λ learned in {epochs} "
            f"epochs; number of seeds: {' or '.join(map(str, counts))}."
        )
        parts.append(table(["", *(f"α = {multiplier:g}" for multiplier in multipliers)], rows))
    return "\n\n".join(parts) or "Not run."


def _grid_cell(runs: Runs, system: System, found: Sequence[Record]) -> str:
    if not found:
        return "not run"
    scores = grid_score(runs, system, found)
    return f"{spread(grid_drift(found), 4)} ({spread(scores, 2)})"


# --- seconds ----------------------------------------------------------------------------------------------------------


def seconds(systems: Systems, runs: Runs) -> str:
    """What an epoch takes, the median over the epochs and seeds of an arm, and what part of it the runner itself is."""
    rows = []
    for system in shown(systems, runs):
        arms = [arm for arm in ("gelu", "relu", "uniform") if runs.of(system.name, arm)]
        medians = {arm: train_seconds(runs.of(system.name, arm)) for arm in arms}
        share = overhead(runs.all_of(system.name))
        if share is None or "gelu" not in medians:
            continue
        gelu = medians["gelu"]
        cells = [f"{medians[arm]:.2f}" if arm in medians else "–" for arm in ("gelu", "relu", "uniform")]
        ratios = [f"{medians[arm] / gelu:.3f}" if arm in medians else "–" for arm in ("relu", "uniform")]
        verdict = "yes" if share <= LARGEST_OVERHEAD else "**no**"
        rows.append([f"`{system.name}`", *cells, *ratios, f"{share:.2f} %: {verdict}"])
    header = ["system", "GELU, s", "ReLU, s", "λ-GELU, s", "ReLU / GELU", "λ-GELU / GELU"]
    return table([*header, f"as ReLU + statistics + log, ≤ {LARGEST_OVERHEAD:g} % of an epoch"], rows)


def train_seconds(found: Sequence[Record]) -> float:
    return statistics.median(
        epoch["seconds"]["train"] for record in found for epoch in record.epochs if epoch["epoch"] > 0
    )


def overhead(found: Sequence[Record]) -> float | None:
    """The median over epochs of the share in % that is neither training nor validation."""
    shares = []
    for record in found:
        for epoch in record.epochs:
            spent = {key: value or 0.0 for key, value in epoch["seconds"].items()}
            if epoch["epoch"] > 0 and sum(spent.values()) > 0:
                shares.append(100 * sum(spent.get(key, 0.0) for key in OVERHEAD) / sum(spent.values()))
    return statistics.median(shares) if shares else None


# --- C++ --------------------------------------------------------------------------------------------------------------


def cpp(systems: Systems, python: Runs, cpp_runs: Runs) -> str:
    """λ of every site when it is learned, and the metric of the test data, from Python and from C++."""
    parts = []
    for system in ordered(systems):
        arms = [arm for arm in NETWORKS if python.of(system.name, arm) and cpp_runs.of(system.name, arm)]
        if not arms:
            continue
        both = [(arm, python.by_seed(system.name, arm), cpp_runs.by_seed(system.name, arm)) for arm in arms]
        header = ["init", "site", "λ, Python", "λ, C++", "means differ by", "largest difference of a seed", "seeds"]
        rows = [row for arm, ours, others in both if arm in MODES for row in _profile(arm, ours, others)]
        parts += [f"`{system.name}`, λ when it is learned:", table(header, rows)] if rows else []
        rows = [
            [arm, *(cell for stage in ("before", "swapped") for cell in _metrics(system, ours, others, stage))]
            for arm, ours, others in both
        ]
        header = ["arm", "test, Python", "test, C++", "as ReLU, Python", "as ReLU, C++"]
        parts += [f"`{system.name}`, {system.metric_name} at the best checkpoint:", table(header, rows)]
    return "\n\n".join(parts) or "Not run."


def _profile(arm: str, ours: Mapping[int, Record], others: Mapping[int, Record]) -> Iterator[list[str]]:
    same = [seed for seed in ours if seed in others]
    for index, name in enumerate(next(iter(ours.values())).head["sites"]):
        a, b = ({seed: learned_hardness(found[seed])[index] for seed in found} for found in (ours, others))
        values = [list(found.values()) for found in (a, b)]
        worst = max((abs(a[seed] - b[seed]) for seed in same), default=None)
        yield [arm, f"`{name}`", *(spread(found, 3) for found in values), _within(*values)] + [
            *("–" if worst is None else f"{worst:.1e}" if worst else "0", f"{len(a)}, {len(b)}")
        ]


def _metrics(system: System, ours: Mapping[int, Record], others: Mapping[int, Record], stage: str) -> list[str]:
    get = metric("best", stage, "test")
    return [
        spread([value for record in found.values() if (value := get(record)) is not None], digits(system))
        for found in (ours, others)
    ]


def _within(a: Sequence[float], b: Sequence[float]) -> str:
    """Whether the means differ by no more than the seeds of one do: the root of the mean of both variances."""
    if min(len(a), len(b)) < 2:
        return "one seed only"
    spread_of_seeds = ((statistics.variance(a) + statistics.variance(b)) / 2) ** 0.5
    difference = abs(statistics.mean(a) - statistics.mean(b))
    times = f"{difference / spread_of_seeds:.1f} spreads" if spread_of_seeds else f"{difference:.3f}"
    return f"{times}: {'within' if difference <= spread_of_seeds else '**beyond**'}"
