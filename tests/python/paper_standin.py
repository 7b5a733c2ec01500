"""A system of examples/paper that needs no data and no time, and the command with it: python -m paper_standin."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.paper import records, training
from examples.paper.experiments import EXPERIMENTS
from examples.paper.experiments.experiment import Experiment
from examples.paper.system import Activation, Data, Split, System
from examples.paper.systems import SYSTEMS

STEP_SECONDS = "STANDIN_STEP_SECONDS"
SAVE_SECONDS = "STANDIN_SAVE_SECONDS"


def _load(folder: Path, download: bool) -> Data:
    random = torch.Generator().manual_seed(0)
    teacher = torch.randn(6, 3, generator=random)

    def split(count: int) -> Split:
        x = torch.randn(count, 6, generator=random)
        return x, (x @ teacher).argmax(-1)

    return Data(split(100), split(60), split(40), split(50))


def _noisy(x: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return x
    time.sleep(float(os.environ.get(STEP_SECONDS, "0")))
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def _network(activation: Activation, dropout: float) -> nn.Module:
    middle = [nn.Linear(8, 8), activation(8, 1), nn.Dropout(dropout), nn.Linear(8, 3)]
    return nn.Sequential(nn.Linear(6, 8), activation(8, 1), *middle)


STANDIN = System(
    name="standin",
    title="noise and dropout, so that every random number counts",
    row="Adult",
    full_size=False,
    metric_name="accuracy",
    epochs=6,
    batch_size=20,
    optimizer="AdamW",
    lr=0.05,
    weight_decay=1e-3,
    warmup_epochs=1.0,
    final_rate=0.1,
    clip=1.0,
    score_batch=16,
    load=_load,
    network=lambda activation: _network(activation, 0.2),
    prepare=_noisy,
)
PLAIN = replace(
    STANDIN,
    name="standin-plain",
    title="nothing random, so that it does not matter who computes it",
    network=lambda activation: _network(activation, 0.0),
    prepare=lambda x, generator: x,
)
ARMS = tuple({arm.name: arm for experiment in EXPERIMENTS.values() for arm in experiment.arms}.values())


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Within the context the command knows it; what else knows the systems, as the report, does not meet it."""
    systems = {system.name: system for system in (STANDIN, PLAIN)}
    SYSTEMS.update(systems)
    EXPERIMENTS["standin"] = Experiment("standin", "every arm there is", ARMS, (STANDIN.name,), seeds=1)
    try:
        yield
    finally:
        del EXPERIMENTS["standin"]
        for name in systems:
            del SYSTEMS[name]


def arguments(folder: Path, *more: object) -> list[str]:
    folders = ["--results", folder / "results", "--cache", folder / "cache", "--data-dir", folder]
    return [str(word) for word in ("standin", *folders, *more)]


def without_seconds(record: records.Record) -> list[Any]:
    """All of a record but what a clock says."""
    lines = json.loads(json.dumps([record.head, *record.epochs, record.end]))
    for line in filter(None, lines):
        line.pop("seconds", None)
    del lines[0]["machine"]["date"]
    return lines


def read(folder: Path) -> dict[tuple[str, str, int], list[Any]]:
    """The records of a folder by system, arm and seed."""
    found = records.read(folder / "results")
    return {(record.system, record.arm, record.seed): without_seconds(record) for record in found}


def main() -> None:
    from examples.paper import run  # noqa: PLC0415 - after what it is to know

    training.SAVE_EVERY = float(os.environ.get(SAVE_SECONDS, training.SAVE_EVERY))
    with registered():
        run.main()


if __name__ == "__main__":
    main()
