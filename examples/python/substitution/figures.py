"""The picture of docs/substitution.md, drawn from the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from .tables import MAIN_TASKS, PROTOCOLS, TITLES, Records

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers and dashes tell them apart in grey.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def draw(records: Records, path: Path) -> None:
    """Writes the PNG: a run over time, its SER, the prediction of SER, and what each way costs."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.4), constrained_layout=True)
    _score_over_the_run(axes[0, 0], records)
    _ser_over_the_run(axes[0, 1], records)
    _prediction(axes[1, 0], records)
    _stages(axes[1, 1], records)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(run: dict[str, Any], key: str) -> tuple[list[float], list[float]]:
    """From the first fifth of the run on, where scores are far from the end's."""
    points = [point for point in run["curve"] if key in point]
    points = points[len(points) // 5 :]
    return [point["step"] for point in points], [point[key]["metric"] for point in points]


def _score_over_the_run(axes: Axes, records: Records) -> None:
    """GPT on repeated text under the paper's protocol: the best score comes before the hardening is done."""
    task = "gpt-repeated" if records.of("gpt-repeated", "paper") else "gpt"
    runs = records.of(task, "paper")
    axes.set(title=f"{TITLES[task]}, the paper's protocol, seed 0", xlabel="step", ylabel="perplexity of held-out text")
    if not runs:
        return
    run = runs[0]
    axes.plot(*_curve(run, "as_is"), color=BLUE, marker="o", markersize=3, label="as it stands (λ-GELU)")
    axes.plot(*_curve(run, "as_relu"), color=ORANGE, marker="s", markersize=3, linestyle="--", label="as ReLU")
    for rule, label, colour, marker in (
        ("best_as_is", "best as it stands: what the paper swaps", BLUE, "v"),
        ("best_as_relu", "best as ReLU", ORANGE, "^"),
    ):
        step = run[rule]["step"]
        point = next(point for point in run["curve"] if point["step"] == step)
        axes.plot(step, point["as_relu"]["metric"], marker, markersize=11, color=colour, mec="black", label=label)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _ser_over_the_run(axes: Axes, records: Records) -> None:
    runs = records.of("gpt", "protocol")
    axes.set(title="GPT, this protocol, seed 0: SER of every site", xlabel="step", ylabel="SER of the swap, dB")
    if not runs:
        return
    points = [point for point in runs[0]["curve"] if "ser_db" in point]
    steps = [point["step"] for point in points]
    for index, marker in zip(range(len(points[0]["ser_db"])), "osv^Dx*", strict=False):
        values = [point["ser_db"][index] for point in points]
        axes.plot(steps, values, marker=marker, markersize=4, label=f"block {index}")
    axes.axhline(30, color="black", linestyle="--", linewidth=1)
    axes.axhline(22, color=GREY, linestyle=":", linewidth=1)
    axes.text(steps[0], 30.2, "30 dB: what was asked", fontsize=8)
    axes.text(steps[0], 22.2, "22 dB: from here on the swap costs at most 0.4 %", fontsize=8, color=GREY)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)


def _prediction(axes: Axes, records: Records) -> None:
    """How far the histogram's SER is from the direct measurement, of every site and seed."""
    for task, colour, marker in zip(MAIN_TASKS, (GREEN, ORANGE, BLUE), "^so", strict=True):
        runs = [run for arm in PROTOCOLS for run in records.of(task, arm)]
        found = [
            (site["ser_db"], site["predicted_ser_db"] - site["ser_db"])
            for run in runs
            for site in run["sites"].values()
        ]
        if found:
            axes.plot(*zip(*found, strict=True), marker, color=colour, markersize=5, label=TITLES[task], alpha=0.8)
    axes.axhspan(-0.1, 0.1, color=GREY, alpha=0.15, label="± 0.1 dB: what was asked")
    axes.set(title="SER predicted from the histogram", xlabel="SER measured, dB", ylabel="predicted − measured, dB")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _stages(axes: Axes, records: Records) -> None:
    """Perplexity of the GPT as a ReLU network by every way, beside ReLU and GELU from scratch: a dot for each seed."""
    ways: list[tuple[str, list[float]]] = [
        ("GELU checkpoint", _metrics(records, "recovered", "before")),
        ("  swapped", _metrics(records, "recovered", "swapped")),
        ("  corrected", _metrics(records, "recovered", "corrected")),
        ("  recovered (10 % more steps)", _metrics(records, "recovered", "recovered")),
        ("GELU, 10 % more steps", _metrics(records, "gelu-continued", "recovered")),
        ("ReLU from scratch", _metrics(records, "relu", "test")),
        ("ReLU, 10 % more steps", _metrics(records, "relu-continued", "recovered")),
        ("λ-GELU, 30 dB, hardened", _metrics(records, "protocol", "before")),
        ("  swapped", _metrics(records, "protocol", "swapped")),
        ("  recovered (same steps in all)", _metrics(records, "protocol", "recovered")),
    ]
    for row, (label, values) in enumerate(ways):
        is_relu = label.startswith((" ", "ReLU"))
        axes.plot(values, [row] * len(values), "s" if is_relu else "o", color=ORANGE if is_relu else BLUE, alpha=0.8)
    axes.set_yticks(range(len(ways)), [label for label, _ in ways], fontsize=8)
    axes.invert_yaxis()
    axes.set(title="GPT: every way to a ReLU network, 3 seeds", xlabel="perplexity per byte of the test text")
    if any(values for _, values in ways):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:.2f}")
        axes.xaxis.set_minor_formatter("{x:.2f}")
    axes.plot([], [], "o", color=BLUE, label="a (λ-)GELU network")
    axes.plot([], [], "s", color=ORANGE, label="a ReLU network")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, axis="x", which="both")


def _metrics(records: Records, arm: str, stage: str) -> list[float]:
    return [run[stage]["metric"] for run in records.of("gpt", arm) if stage in run]
