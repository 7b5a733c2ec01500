"""From the command line to runs: which systems, arms, seeds and settings."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from . import records
from .arm import Arm
from .experiments import EXPERIMENTS
from .experiments.experiment import Experiment
from .system import System
from .systems import SYSTEMS
from .training import Run

ARM_SETTINGS = tuple(field.name for field in fields(Arm) if field.name not in ("name", "activation"))
SYSTEM_SETTINGS = ("batch_size", "optimizer", "lr", "weight_decay", "warmup_epochs", "final_rate", "clip")
CHOICES = {
    "optimizer": ("SGD", "AdamW"),
    "per": ("layer", "channel"),
    "init": ("uniform", "increasing", "decreasing"),
    "schedule": ("linear", "geometric", "harmonic", "cosine"),
    "start": ("settled",),  # or a number
}
CUTS = ("--epochs", "--steps-per-epoch", "--examples")


class UnknownNameError(ValueError):
    """A name that is none; the message lists those there are."""


def runs(arguments: argparse.Namespace) -> list[Run]:
    """All runs that are asked for, the first seed of every arm before the second.

    Raises:
        UnknownNameError, ValueError: naming the argument.
    """
    experiment = _chosen("experiment", arguments.experiment, EXPERIMENTS)
    systems = [_chosen("--systems", name, SYSTEMS) for name in arguments.systems or experiment.systems]
    by_name = {arm.name: arm for arm in experiment.arms}
    arms = [_chosen("--arms", name, by_name) for name in arguments.arms or by_name]
    count = experiment.seeds if arguments.seeds is None else arguments.seeds
    for flag, value in (("--seeds", count), *((flag, getattr(arguments, flag[2:].replace("-", "_"))) for flag in CUTS)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be at least 1, got {value}")
    cut = {"epochs": arguments.epochs, "steps_per_epoch": arguments.steps_per_epoch}
    found = {}
    for seed, system, arm, chosen in itertools.product(range(count), systems, arms, _sweep(arguments.set)):
        changed_system, changed_arm = _changed(system, arm, chosen)
        changed_system = replace(changed_system, **{key: value for key, value in cut.items() if value is not None})
        found[system.name, changed_arm.name, seed] = Run(
            changed_system, changed_arm, seed, arguments.results, arguments.cache, arguments.device, arguments.examples
        )
    return list(found.values())


def is_pending(run: Run) -> bool:
    """Raises: RecordMismatchError: where a record with other settings has its name."""
    record = run.record()
    return record is None or record.end is None


def overview(experiments: Mapping[str, Experiment], results: Path) -> str:
    """The experiments, their arms, and how many seeds of each have a record."""
    done: dict[tuple[str, str], int] = {}
    for record in records.read(results):
        key = record.system, record.arm
        done[key] = done.get(key, 0) + record.is_finished
    lines = []
    for experiment in experiments.values():
        lines.append(f"{experiment.name}: {experiment.title}")
        for system in experiment.systems:
            told = ", ".join(f"{arm.name} ({done.get((system, arm.name), 0)})" for arm in experiment.arms)
            lines.append(f"    {system}: {told}")
    return "\n".join([*lines, "In brackets: seeds with a record."])


def _chosen(what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise UnknownNameError(f"{what}: unknown {name!r}, there are {', '.join(known)}")
    return known[name]


def _sweep(settings: Iterable[str]) -> list[dict[str, str]]:
    """Every combination of the values that are given."""
    given: dict[str, list[str]] = {}
    for text in settings:
        key, sign, values = text.partition("=")
        if not sign or not all(values.split(",")):
            raise ValueError(f"--set: expected KEY=VALUE or KEY=VALUE,VALUE, got {text!r}")
        if key not in (*SYSTEM_SETTINGS, *ARM_SETTINGS):
            raise UnknownNameError(f"--set: unknown {key!r}, there are {', '.join((*SYSTEM_SETTINGS, *ARM_SETTINGS))}")
        given[key] = values.split(",")
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]


def _changed(system: System, arm: Arm, chosen: Mapping[str, str]) -> tuple[System, Arm]:
    """Both with these settings; the arm's name tells them, so that every combination has a record of its own."""
    values = {key: _value(key, text, system if key in SYSTEM_SETTINGS else arm) for key, text in chosen.items()}
    for_system = {key: value for key, value in values.items() if key in SYSTEM_SETTINGS}
    for_arm = {key: value for key, value in values.items() if key in ARM_SETTINGS}
    name = "+".join([arm.name, *(f"{key}={text}" for key, text in chosen.items())])
    return replace(system, **for_system), replace(arm, **for_arm, name=name)


def _value(key: str, text: str, owner: System | Arm) -> Any:
    """In the type that the setting has; a number where it is a number or nothing."""
    kind = {field.name: str(field.type) for field in fields(owner)}[key]
    if text == "None" and "None" in kind:
        return None
    with contextlib.suppress(ValueError, KeyError):
        if kind == "bool":
            return {"True": True, "False": False}[text]
        if "int" in kind:
            return _positive(int(text))
        if "float" in kind:
            return float(text)
    if "str" in kind and text in CHOICES.get(key, (text,)):
        return text
    told = f"{kind}, of {', '.join(CHOICES[key])}" if key in CHOICES else kind
    raise ValueError(f"--set: {key} must be {told}, got {text!r}")


def _positive(value: int) -> int:
    if value < 1:
        raise ValueError
    return value
