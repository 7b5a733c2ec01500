"""Small images, ResNets. The settings are ours, the paper's are not known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.datasets import Labelled, cifar

from ..networks import ResNet
from ..system import Data, System
from .images import Pixels
from .splits import spread


def _data(data: Labelled, test_images: int) -> Data:
    return Data(data.train, data.held_out, spread(data.train, 256), spread(data.test, test_images))


def _load_10(parts: int, test_images: int) -> Callable[[Path, bool], Data]:
    return lambda folder, download: _data(cifar.load_10(folder, parts=parts, download=download), test_images)


def _load_100(train_images: int, test_images: int) -> Callable[[Path, bool], Data]:
    def load(folder: Path, download: bool) -> Data:
        data = cifar.load_100(folder, download=download)
        held_out = spread(data.held_out, train_images // 9)
        return _data(Labelled(spread(data.train, train_images), held_out, data.test), test_images)

    return load


_COMMON: dict[str, Any] = {"metric_name": "accuracy", "optimizer": "AdamW", "warmup_epochs": 1.0, "final_rate": 0.01}
_SMALL: dict[str, Any] = _COMMON | {
    "full_size": False,
    "epochs": 25,
    "batch_size": 64,
    "lr_multiplier": 1.0,
    "score_batch": 64,  # what the layers of more make leaves the cache
    "lr": 5e-3,
    "weight_decay": 0.05,
}
_FULL: dict[str, Any] = _COMMON | {
    "full_size": True,
    "epochs": 75,
    "batch_size": 128,
    "lr": 1e-3,
    "weight_decay": 0.05,
}
_PIXELS_10 = Pixels((125.30691805, 122.95039414, 113.86538318), (62.99321928, 62.08870764, 66.70489964), shift=4)
_PIXELS_100 = Pixels((129.30, 124.07, 112.43), (68.17, 65.39, 70.42), shift=4)
_RESNET_8: dict[str, Any] = {"blocks": (1, 1, 1), "width": 8}

RESNET8_CIFAR10 = System(
    name="resnet8-cifar10",
    title="a fifth of CIFAR-10, ResNet-8 with 8 channels",
    row="CIFAR-10",
    load=_load_10(1, 2000),
    network=lambda activation: ResNet(activation, 10, **_RESNET_8),
    prepare=_PIXELS_10,
    **_SMALL,
)
RESNET18_CIFAR10 = System(
    name="resnet18-cifar10",
    title="CIFAR-10, ResNet-18",
    row="CIFAR-10",
    load=_load_10(5, 10_000),
    network=lambda activation: ResNet(activation, 10),
    prepare=_PIXELS_10,
    **_FULL,
)
RESNET8_CIFAR100 = System(
    name="resnet8-cifar100",
    title="a fifth of CIFAR-100, ResNet-8 with 8 channels",
    row="CIFAR-100",
    load=_load_100(9000, 2000),
    network=lambda activation: ResNet(activation, 100, **_RESNET_8),
    prepare=_PIXELS_100,
    **_SMALL,
)
RESNET18_CIFAR100 = System(
    name="resnet18-cifar100",
    title="CIFAR-100, ResNet-18",
    row="CIFAR-100",
    load=_load_100(45_000, 10_000),
    network=lambda activation: ResNet(activation, 100),
    prepare=_PIXELS_100,
    **_FULL,
)
