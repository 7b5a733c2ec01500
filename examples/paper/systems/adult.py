"""Census incomes, MLP 4 × 256: the paper's network and data.

The settings are ours, the paper's are not known. A step of SGD moves λ by about α η / τ² times its gradient: with
τ = 0.1, α = 1, a batch of 128 and this rate the first site is at 4 after one epoch.
"""

from __future__ import annotations

from pathlib import Path

from examples.datasets import adult

from ..networks import mlp
from ..system import Data, System
from .splits import spread


def _load(folder: Path, download: bool) -> Data:
    data = adult.load(folder, download=download)
    return Data(data.train, data.held_out, spread(data.train, 1000), data.test)


ADULT = System(
    name="adult",
    title="Adult, MLP 4 × 256",
    row="Adult",
    full_size=True,
    metric_name="accuracy",
    epochs=50,
    batch_size=256,
    optimizer="SGD",
    lr=0.05,
    weight_decay=1e-4,
    final_rate=0.1,
    temperature=0.5,
    lr_multiplier=5.0,
    load=_load,
    network=lambda activation: mlp(activation, 108, 2),
)
