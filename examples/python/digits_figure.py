"""The picture of the digits demo. Readable in black and white: line styles, markers and hatches, not colours alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import lambda_gelu

mpl.use("Agg")

# Okabe and Ito's palette, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
LAYER_STYLES = [(BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D")]


def draw(record: dict[str, Any], path: Path) -> None:
    """Draws the three panels into a PNG file.

    Args:
        record: the content of digits.json.
        path: of the file.
    """
    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(16.5, 5.4), layout="constrained")
        hardness_panel, shape_panel, cost_panel = figure.subplots(1, 3)
        _draw_hardness(hardness_panel, record)
        _draw_shape(shape_panel, record)
        _draw_cost(cost_panel, record)
        figure.suptitle(
            f"λ-GELU on handwritten digits: learn λ, harden it, swap to ReLU ({_seeds(record)})", fontsize=14
        )
        figure.savefig(path, dpi=150)


def _seeds(record: dict[str, Any]) -> str:
    count = len(record["settings"]["seeds"])
    return f"{count} seeds" if count > 1 else "1 seed"


def _hardness(record: dict[str, Any]) -> torch.Tensor:
    """λ with dimensions seed, epoch and layer."""
    return torch.tensor([run["hardness_by_epoch"] for run in record["runs"]["λ-GELU"]], dtype=torch.float64)


def _switch(record: dict[str, Any]) -> int:
    """The epoch after which λ is frozen."""
    phases = record["runs"]["λ-GELU"][0]["phase_by_epoch"]
    return next(epoch for epoch, phase in enumerate(phases) if phase != "learn")


def _draw_hardness(axes: Axes, record: dict[str, Any]) -> None:
    hardness = _hardness(record)
    mean = hardness.mean(0)
    epochs = list(range(len(mean)))
    for layer in range(mean.shape[1]):
        color, line, marker = LAYER_STYLES[layer % len(LAYER_STYLES)]
        axes.plot(
            epochs,
            mean[:, layer],
            line,
            color=color,
            linewidth=2,
            marker=marker,
            markersize=6,
            markevery=(layer * max(len(epochs) // 32, 1), max(len(epochs) // 8, 1)),
            label=f"layer {layer + 1}",
        )
        axes.plot(epochs, hardness[:, :, layer].T, line, color=color, linewidth=0.7, alpha=0.35)
    switch = _switch(record)
    axes.axvline(switch, color=BLACK, linewidth=0.8, linestyle=(0, (2, 3)))
    top = axes.get_ylim()[1]
    axes.text(switch, top, "learned ", ha="right", va="top", style="italic")
    axes.text(switch, top, " hardened", ha="left", va="top", style="italic")
    axes.set_title("Hardness of every layer (bold: mean over the seeds)")
    axes.set_xlabel("epoch")
    axes.set_ylabel("hardness λ (dimensionless)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", frameon=False)


def _draw_shape(axes: Axes, record: dict[str, Any]) -> None:
    hardness = _hardness(record).mean((0, 2))
    learned, hardened = hardness[_switch(record)].item(), hardness[-1].item()
    x = torch.linspace(-2.5, 1.5, 401, dtype=torch.float64)
    curves = [
        ("GELU (λ = 1)", torch.nn.functional.gelu(x), BLUE, "--", "o"),
        (f"before hardening (λ = {learned:.2f})", lambda_gelu.lambda_gelu(x, learned), GREEN, "-.", "^"),
        (f"after hardening (λ = {hardened:.2f})", lambda_gelu.lambda_gelu(x, hardened), ORANGE, "-", "s"),
        ("ReLU (λ → ∞)", x.clamp(min=0), BLACK, ":", ""),
    ]
    for index, (label, y, color, line, marker) in enumerate(curves):
        axes.plot(x, y, line, color=color, marker=marker, markersize=5, markevery=(10 * index, 40), label=label)
    axes.set_ylim(-0.25, 0.9)
    axes.set_xlim(-2.5, 1.5)
    axes.axhline(0, color=BLACK, linewidth=0.5)
    axes.axvline(0, color=BLACK, linewidth=0.5)
    axes.set_title("Shape of the activation")
    axes.set_xlabel("pre-activation x (dimensionless)")
    axes.set_ylabel("f(x; λ) = x Φ(λx)")
    axes.legend(loc="upper left", frameon=False)


def _draw_cost(axes: Axes, record: dict[str, Any]) -> None:
    styles = {"GELU": (BLUE, "//", "o"), "λ-GELU": (ORANGE, "..", "s")}
    labels = {"GELU": "GELU", "λ-GELU": "λ-GELU, hardened"}
    ticks = []
    for position, (name, (color, hatch, marker)) in enumerate(styles.items()):
        costs = [run["before"] - run["after"] for run in record["runs"][name]]
        summary = record["summary"][name]
        mean, std = summary["cost"]["mean"], summary["cost"]["std"]
        text = f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
        ticks.append(
            f"{labels[name]}\nbefore {summary['before']['mean']:.2f} %\nafter {summary['after']['mean']:.2f} %"
        )
        axes.bar(position, mean, 0.55, color="white", edgecolor=color, hatch=hatch, linewidth=1.5)
        offsets = torch.linspace(-0.12, 0.12, len(costs)) if len(costs) > 1 else torch.zeros(1)
        axes.plot(position + offsets, costs, marker, color=BLACK, markersize=6, markerfacecolor="white")
        axes.annotate(
            text.replace("-", "−"),
            (position, max(mean, *costs, 0)),
            xytext=(0, 10),
            textcoords="offset points",
            ha="center",
            weight="bold",
        )
    axes.axhline(0, color=BLACK, linewidth=0.8)
    axes.margins(y=0.15)
    scratch = record["summary"]["ReLU"]["before"]["mean"]
    axes.text(len(styles), 0, "no swap", ha="center", va="bottom", style="italic")
    axes.set_xlim(-0.6, len(styles) + 0.6)
    axes.set_xticks(range(len(styles) + 1), [*ticks, f"ReLU from scratch\n{scratch:.2f} %"])
    axes.set_title("Cost of the swap (bars: mean, marks: seeds)")
    axes.set_xlabel("network, and its accuracy before and after the swap")
    axes.set_ylabel("validation accuracy lost (percentage points)")
