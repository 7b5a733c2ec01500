"""Trains a GELU and a λ-GELU network on handwritten digits, hardens λ, swaps both to ReLU, and shows what that costs.

Table II of the λ-GELU paper (arXiv 2603.21991) in small. Three multilayer perceptrons that differ only in their
activation are trained on scikit-learn's digits (1797 images of 8 x 8 pixels; every second is for validation), each with
several seeds:

    GELU      swapped to ReLU after training, without any weight update
    λ-GELU    λ learned, then raised to its target, then swapped
    ReLU      trained as a ReLU network from the start: the honest baseline, to which nothing is done

The figures are those of the last epoch. Needs: pip install 'lambda-gelu[demo]'.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lambda_gelu
from lambda_gelu import HardnessScheduler, LambdaGELU, relu_gap
from progress import Bar, progress_bar

WIDTH, HIDDEN_LAYERS = 64, 4
BATCH_SIZE, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 64, 0.05, 0.9, 1e-4
# SGD moves λ by α η (dλ/ds)² times its gradient, and (dλ/ds)² is 25 at the start: with α = 10 every λ soon sits at 1.
LR_MULTIPLIER = 1.0
VALIDATION_EVERY = 2

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"GELU": nn.GELU, "λ-GELU": LambdaGELU, "ReLU": nn.ReLU}


@dataclass(frozen=True)
class Digits:
    """Pixels in [-1, 1], shape (N, 64), and labels."""

    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor


def load_digits() -> tuple[Tensor, Tensor]:
    """Pixels from 0 to 16, shape (1797, 64), and labels."""
    try:
        from sklearn import datasets  # noqa: PLC0415 - the error names what to install
    except ImportError:
        sys.exit("digits.py needs scikit-learn for the data: pip install 'lambda-gelu[demo]'")
    data = datasets.load_digits()
    return torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)


def split(pixels: Tensor, labels: Tensor) -> Digits:
    """Every second image is for validation. Neighbours have the same writer, so both parts have the same writers."""
    validation = torch.arange(len(labels)) % VALIDATION_EVERY == VALIDATION_EVERY - 1
    x = pixels / 8 - 1
    return Digits(x[~validation], labels[~validation], x[validation], labels[validation])


def export(path: Path, pixels: Tensor, labels: Tensor) -> None:
    """Writes one line per image: 64 pixels from 0 to 16, then the label. The C++ example reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [*map(int, row), label] for row, label in zip(pixels.tolist(), labels.tolist(), strict=True)
        )


# --- training --------------------------------------------------------------------------------------------------------


def make_network(activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    features = 64
    for _ in range(HIDDEN_LAYERS):
        layers += [nn.Linear(features, WIDTH), activation()]
        features = WIDTH
    return nn.Sequential(*layers, nn.Linear(features, 10))


@torch.no_grad()
def accuracy(network: nn.Module, digits: Digits) -> float:
    """On the validation images, in percent."""
    network.eval()
    correct = network(digits.validation_x).argmax(1) == digits.validation_y
    network.train()
    return 100 * correct.double().mean().item()


def train_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, digits: Digits, order: torch.Generator) -> None:
    for batch in torch.randperm(len(digits.train_y), generator=order).split(BATCH_SIZE):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(digits.train_x[batch]), digits.train_y[batch]).backward()
        optimizer.step()


def hardness_of(network: nn.Module) -> list[float]:
    return [site.hardness.item() for site in lambda_gelu.find_sites(network).values()]


def train(name: str, seed: int, digits: Digits, arguments: argparse.Namespace, bar: Bar) -> dict[str, Any]:
    """One run: accuracy before and after the swap, and λ of every layer after every epoch."""
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    network = make_network(ACTIVATIONS[name])
    hardened = name == "λ-GELU"
    if hardened:
        lambda_gelu.init_hardness_(network, arguments.init)
        parameters = lambda_gelu.param_groups(
            network, lr=LEARNING_RATE, lr_multiplier=LR_MULTIPLIER, weight_decay=WEIGHT_DECAY
        )
        scheduler = HardnessScheduler(network, arguments.epochs, target=arguments.target, schedule=arguments.schedule)
    else:
        parameters = network.parameters()
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    result: dict[str, Any] = {"seed": seed, "accuracy_by_epoch": []}
    if hardened:
        result |= {
            "hardness_by_epoch": [hardness_of(network)],
            "phase_by_epoch": [scheduler.phase],
            "accuracy_as_relu_by_epoch": [],
        }
    bar.set_description(f"seed {seed}, {name}")
    for _ in range(arguments.epochs):
        train_epoch(network, optimizer, digits, order)
        if hardened:
            scheduler.step()
        result["accuracy_by_epoch"].append(accuracy(network, digits))
        if hardened:
            result["hardness_by_epoch"].append(hardness_of(network))
            result["phase_by_epoch"].append(scheduler.phase)
            with lambda_gelu.relu_substituted(network):
                result["accuracy_as_relu_by_epoch"].append(accuracy(network, digits))
        bar.update()

    result["before"] = accuracy(network, digits)
    if name == "GELU":
        lambda_gelu.convert_(network)  # only so that to_relu_ finds it
    if name != "ReLU":
        report = lambda_gelu.to_relu_(network)
        if hardened:
            result["swap"] = report.to_dict()
    result["after"] = accuracy(network, digits)
    return result


def run_all(digits: Digits, arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    bar = progress_bar(len(ACTIVATIONS) * len(seeds) * arguments.epochs, "epoch")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ACTIVATIONS}
    for seed in seeds:
        for name in ACTIVATIONS:
            results[name].append(train(name, seed, digits, arguments, bar))
    bar.close()
    return results


# --- what comes out --------------------------------------------------------------------------------------------------


Summary = dict[str, dict[str, dict[str, float | None]]]


def mean_and_std(values: list[float]) -> dict[str, float | None]:
    """Over the seeds; a single one has no standard deviation."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return {"mean": tensor.mean().item(), "std": tensor.std().item() if len(values) > 1 else None}


def summarize(results: dict[str, list[dict[str, Any]]]) -> Summary:
    summary: Summary = {}
    for name, runs in results.items():
        columns = {
            "before": [run["before"] for run in runs],
            "after": [run["after"] for run in runs],
            "cost": [run["before"] - run["after"] for run in runs],
        }
        summary[name] = {key: mean_and_std(values) for key, values in columns.items()}
    return summary


def format_cell(cell: dict[str, float | None]) -> str:
    return f"{cell['mean']:.2f}" if cell["std"] is None else f"{cell['mean']:.2f} ± {cell['std']:.2f}"


def format_summary(summary: Summary, seeds: int) -> str:
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "1 seed"
    lines = [
        f"Validation accuracy in %, {over}",
        f"{'network':<24}{'before the swap':>18}{'after the swap':>18}{'cost in points':>18}",
        "-" * 78,
    ]
    labels = {"GELU": "GELU -> ReLU", "λ-GELU": "λ-GELU, hardened -> ReLU", "ReLU": "ReLU from scratch"}
    for name, columns in summary.items():
        cells = [format_cell(columns[key]) for key in ("before", "after", "cost")]
        if name == "ReLU":
            cells[1:] = ["-", "-"]
        lines.append(f"{labels[name]:<24}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "epochs": arguments.epochs,
        "seeds": list(range(arguments.seed, arguments.seed + arguments.seeds)),
        "init": arguments.init,
        "target": arguments.target,
        "schedule": arguments.schedule,
        "hardening_starts_at": 0.25,
        "width": WIDTH,
        "hidden_layers": HIDDEN_LAYERS,
        "optimizer": "SGD",
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
        "lr_multiplier": LR_MULTIPLIER,
        "batch_size": BATCH_SIZE,
        "validation": "every second image",
    }


def parse_arguments() -> argparse.Namespace:
    def positive_int(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
        return value

    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seed", type=int, default=0, help="first seed (default 0)")
    add("--seeds", type=positive_int, default=5, help="number of seeds (default 5)")
    add("--epochs", type=positive_int, default=60, help="epochs of every run (default 60)")
    add("--init", choices=("uniform", "increasing", "decreasing"), default="uniform", help="λ over depth at the start")
    add(
        "--target",
        type=float,
        default=relu_gap.target_from_gate_gap(0.1),
        help="λ to reach (default 7.98: gate gap 0.1)",
    )
    add("--schedule", choices=("linear", "geometric", "harmonic", "cosine"), default="linear", help="how λ rises")
    add("--output-dir", type=Path, default=Path("demo_output"), help="for digits.png and digits.json")
    add("--export-digits", type=Path, metavar="CSV", help="also write the data, for examples/cpp/train")
    arguments = parser.parse_args()
    try:  # before minutes of training
        HardnessScheduler(
            nn.Sequential(LambdaGELU()), arguments.epochs, target=arguments.target, schedule=arguments.schedule
        )
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)  # the networks are too small to gain from more, and runs repeat bit for bit
    pixels, labels = load_digits()
    if arguments.export_digits is not None:
        export(arguments.export_digits, pixels, labels)
    started = time.perf_counter()
    results = run_all(split(pixels, labels), arguments)
    summary = summarize(results)
    print(format_summary(summary, arguments.seeds))

    record = {
        "settings": settings(arguments),
        "versions": {
            "lambda_gelu": lambda_gelu.build_info(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "seconds": time.perf_counter() - started,
        "summary": summary,
        "runs": results,
    }
    json_path = arguments.output_dir / "digits.json"
    json_path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"all figures: {json_path}")
    try:
        from digits_figure import draw  # noqa: PLC0415 - only the picture needs matplotlib
    except ImportError as error:
        sys.exit(f"no picture without matplotlib ({error}): pip install 'lambda-gelu[demo]'")
    picture_path = arguments.output_dir / "digits.png"
    draw(record, picture_path)
    print(f"picture: {picture_path}")


if __name__ == "__main__":
    main()
