"""What the paper reports: arXiv 2603.21991, Tables I and II. The only figures of the report that are not ours."""

from __future__ import annotations

TITLE = "arXiv 2603.21991"

NETWORKS = {
    "Adult": "MLP 4×256",
    "FMNIST": "MLP 4×256",
    "CIFAR-10": "ResNet-18",
    "CIFAR-100": "ResNet-18",
    "TinyImageNet": "DeiT-Tiny",
    "WikiText-2": "GPT-2",
}
ROWS = tuple(NETWORKS)

# Table II: the validation accuracy as a part of 1, at the checkpoint and after the swap. The paper gives no spread.
SWAPS = {
    "gelu": {
        "Adult": (0.85, 0.80),
        "FMNIST": (0.86, 0.83),
        "CIFAR-10": (0.95, 0.92),
        "CIFAR-100": (0.74, 0.67),
        "TinyImageNet": (0.71, 0.68),
    },
    "annealed": {
        "Adult": (0.81, 0.81),
        "FMNIST": (0.86, 0.85),
        "CIFAR-10": (0.95, 0.95),
        "CIFAR-100": (0.74, 0.72),
        "TinyImageNet": (0.71, 0.72),
    },
}
NO_SWAP = {"gelu": "fails", "annealed": "fails, left open"}

# Table I: the epoch of the best validation score. λ is learned in all epochs of these runs, and never hardened.
BEST_EPOCHS = {
    "Adult": {"gelu": 41, "relu": 40, "decreasing": 32, "increasing": 46, "uniform": 46},
    "FMNIST": {"gelu": 49, "relu": 48, "decreasing": 49, "increasing": 50, "uniform": 48},
    "CIFAR-10": {"gelu": 72, "relu": 70, "decreasing": 75, "increasing": 70, "uniform": 75},
    "CIFAR-100": {"gelu": 74, "relu": 72, "decreasing": 64, "increasing": 69, "uniform": 71},
    "TinyImageNet": {"gelu": 90, "relu": 85, "decreasing": 90, "increasing": 87, "uniform": 90},
    "WikiText-2": {"gelu": 7, "relu": 9, "decreasing": 7, "increasing": 7, "uniform": 7},
}


def swap(row: str, arm: str) -> tuple[float, float] | None:
    """The accuracy in percent at the checkpoint and after the swap; None where the paper reports none."""
    found = SWAPS[arm].get(row)
    return None if found is None else (round(100 * found[0]), round(100 * found[1]))
