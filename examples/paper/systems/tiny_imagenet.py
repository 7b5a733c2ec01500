"""200 classes in 64 × 64 pixels, vision transformers. The settings are ours, the paper's are not known.

Nor is which size of image its DeiT-Tiny was given or whether it was pre-trained. Here that of full size is
given 224 × 224 pixels, enlarged, for which it was published, and starts from random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.datasets import tiny_imagenet

from ..networks import VisionTransformer
from ..system import Data, Split, System
from .images import Pixels
from .splits import spread


def _load(classes: int) -> Callable[[Path, bool], Data]:
    def of_first_classes(split: Split) -> Split:
        x, y = split
        chosen = y < classes
        return x[chosen], y[chosen]

    def load(folder: Path, download: bool) -> Data:
        data = tiny_imagenet.load(folder, download=download)
        train, held_out, test = (of_first_classes(split) for split in (data.train, data.held_out, data.test))
        return Data(train, held_out, spread(train, 400), test)

    return load


_MEAN, _DEVIATION = (122.46, 114.26, 101.36), (70.63, 68.61, 71.93)
_COMMON: dict[str, Any] = {
    "row": "TinyImageNet",
    "metric_name": "accuracy",
    "optimizer": "AdamW",
    "weight_decay": 0.05,
    "clip": 1.0,
    "final_rate": 0.01,
}

VIT4X96_TINYIMAGENET20 = System(
    name="vit4x96-tinyimagenet20",
    title="20 classes of TinyImageNet, vision transformer 4 × 96",
    full_size=False,
    epochs=12,
    batch_size=64,
    lr=1e-3,
    warmup_epochs=1.0,
    score_batch=64,
    load=_load(20),
    network=lambda activation: VisionTransformer(activation, 20, size=64, patch=8, width=96, heads=3, layers=4),
    prepare=Pixels(_MEAN, _DEVIATION, shift=8),
    **_COMMON,
)
DEIT_TINY_TINYIMAGENET = System(
    name="deit-tiny-tinyimagenet",
    title="TinyImageNet, DeiT-Tiny",
    full_size=True,
    epochs=90,
    batch_size=256,
    lr=5e-4,
    warmup_epochs=5.0,
    load=_load(200),
    network=lambda activation: VisionTransformer(activation, 200),
    prepare=Pixels(_MEAN, _DEVIATION, shift=8, size=224),
    **_COMMON,
)
