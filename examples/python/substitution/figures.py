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
    """The paper's protocol, on repeated text if that has run: the best score may come before the hardening is done."""
    task = next((task for task in ("gpt-repeated", "gpt", "digits") if records.of(task, "paper")), "digits")
    runs = records.of(task, "paper")
    axes.set(
        title=f"{TITLES[task]}, the paper's protocol, seed 0",
        xlabel="step",
        ylabel="accuracy, %" if task == "digits" else "perplexity of held-out text",
    )
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
    axes.set_ylim(top=32)
    axes.text(steps[-1], 22.2, "22 dB", fontsize=8, color=GREY, ha="right")
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
    """The GPT by every way, beside the GELU checkpoint of the same seed: a marker for each seed."""
    reference = {seed: run["test"]["metric"] for seed, run in records.by_seed("gpt", "gelu").items()}
    ways = (
        ("GELU, 10 % more steps", "gelu-continued", "recovered", BLUE),
        ("GELU → ReLU: swapped", "recovered", "swapped", ORANGE),
        ("    corrected", "recovered", "corrected", ORANGE),
        ("    recovered, 10 % more steps", "recovered", "recovered", ORANGE),
        ("λ-GELU, 30 dB: hardened", "protocol", "before", BLUE),
        ("    swapped", "protocol", "swapped", ORANGE),
        ("    recovered, same steps in all", "protocol", "recovered", ORANGE),
        ("ReLU from scratch", "relu", "test", GREEN),
        ("    10 % more steps", "relu-continued", "recovered", GREEN),
    )
    for row, (_, arm, stage, colour) in enumerate(ways):
        for seed, run in records.by_seed("gpt", arm).items():
            if stage in run and seed in reference:
                value = 100 * (run[stage]["metric"] / reference[seed] - 1)
                axes.plot(value, row, "os^"[seed % 3], color=colour, mec="black", mew=0.5, markersize=8, alpha=0.9)
    for seed in reference:
        axes.plot([], [], "os^"[seed % 3], color="white", mec="black", label=f"seed {seed}")
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(ways)), [way[0] for way in ways], fontsize=8)
    for tick, way in zip(axes.get_yticklabels(), ways, strict=True):
        tick.set_color(way[3])
    axes.set_ylim(len(ways) - 0.5, -0.5)
    axes.set_xscale("symlog", linthresh=5)
    axes.xaxis.set_major_formatter("{x:g}")
    ticks = [-50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50]
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.set(title="GPT: every way to a ReLU network", xlabel="perplexity beside the GELU checkpoint of its seed, %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, axis="x")
