"""Records of runs that never were, for tests of what reports make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from examples.paper.records import Record
from examples.paper.system import System


def system(name: str, row: str, metric_name: str = "accuracy", *, full_size: bool = True, epochs: int = 4) -> System:
    """A system that can be shown but not trained."""

    def nothing(*_: object) -> Any:
        raise AssertionError("a report trains nothing")

    load: Any = nothing
    return System(
        name=name,
        title=f"{name}, small",
        row=row,
        full_size=full_size,
        metric_name=metric_name,
        epochs=epochs,
        batch_size=8,
        optimizer="SGD",
        lr=0.1,
        weight_decay=1e-4,
        load=load,
        network=lambda activation: nn.Sequential(),
    )


def scores(validation: float, test: float) -> dict[str, Any]:
    return {"validation": {"loss": 1.0, "metric": validation}, "test": {"loss": 1.0, "metric": test}}


def run(
    of: System,
    arm: str,
    seed: int = 0,
    *,
    hardness: Sequence[Sequence[float]] = ((1.0, 1.0),) * 3,
    phases: Sequence[str | None] | None = None,
    before: tuple[float, float] = (90.0, 89.0),
    swapped: tuple[float, float] | None = (88.0, 87.0),
    stages: Mapping[str, tuple[float, float]] | None = None,
    best_epoch: int = 2,
    ser_db: Sequence[float] = (20.0, 10.0),
    seconds: Mapping[str, float] | None = None,
    status: str | None = "finished",
    settings: Mapping[str, Any] | None = None,
) -> Record:
    """A run whose λ at the end of epoch t is `hardness[t]`; the last checkpoint is 30 points below the best.

    Args:
        before, swapped: the metric of validation and test.
        stages: the same, of what follows the swap: ``"corrected"``, ``"recovered"``.
        phases: default: λ is learned to the end, or there is none.
        seconds: of every epoch; default: 8 s of training, 1 s of validation and 1 s of all that is the runner's own.
        status: None for a run that is not over.
    """
    sites = [f"site{index}" for index in range(len(hardness[0]))]
    has_hardness = arm not in ("gelu", "gelu-recovered", "relu")
    phases = phases or ["learn" if has_hardness else None] * len(hardness)
    spent = seconds or {"train": 8.0, "validation": 1.0, "as_relu": 0.5, "statistics": 0.4, "log": 0.1}
    head = {
        "kind": "run",
        "format": 1,
        "system": of.name,
        "arm": arm,
        "seed": seed,
        "settings": of.settings()
        | {"arm": {"hardens": set(phases) > {"learn"}, "start": 0.25} | dict(settings or {}), "examples": None},
        "sites": sites,
        "parameters": 1234,
        "machine": {"device": "a processor", "torch": "2.13.0"},
    }
    epochs = [
        {
            "kind": "epoch",
            "epoch": epoch,
            "step": 10 * epoch,
            "phase": phases[epoch],
            "rate": 0.1,
            "train": {"loss": 1.0} if epoch else None,
            "validation": {"loss": 1.0, "metric": before[0]},
            "as_relu": None if swapped is None else {"loss": 1.0, "metric": swapped[0]},
            "hardness": list(values),
            "sigma": [1.0] * len(sites),
            "kappa": list(values),
            "ser_db": [10.0] * len(sites),
            "zeros": [0.5] * len(sites),
            "drift": [abs(a - b) for a, b in zip(values, hardness[max(epoch - 1, 0)], strict=True)],
            "seconds": {"train": 0.0, "validation": 9.0, "as_relu": 9.0, "statistics": 9.0, "log": 9.0}
            if epoch == 0
            else dict(spent),
        }
        for epoch, values in enumerate(hardness)
    ]
    end: dict[str, Any] | None = None
    if status == "finished":
        point: dict[str, Any] = {"epoch": best_epoch} | scores(*before)
        point["swapped"] = None if swapped is None else scores(*swapped)
        if swapped is not None:
            point["sites"] = [
                {"name": name, "hardness": 8.0, "ser_db": value} for name, value in zip(sites, ser_db, strict=False)
            ]
        last = {"epoch": len(epochs) - 1} | scores(before[0] - 30, before[1] - 30)
        last["swapped"] = None if swapped is None else scores(swapped[0] - 30, swapped[1] - 30)
        best = point | {stage: scores(*values) for stage, values in (stages or {}).items()}
        end = {"kind": "end", "status": status, "where": None, "seconds": 60.0, "best": best, "last": point | last}
        if swapped is not None:
            end["best_as_relu"] = point
    elif status is not None:
        end = {"kind": "end", "status": status, "where": {"epoch": 2, "step": 15}, "seconds": 60.0}
    return Record(head, epochs, end)
