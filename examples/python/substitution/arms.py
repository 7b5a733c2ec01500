"""What is compared. Each arm is one run with one seed, and gives the figures of one record."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lambda_gelu
from lambda_gelu import HardnessScheduler
from progress import Bar

from . import training
from .tasks import Task

Figures = dict[str, Any]


@dataclass
class Run:
    """What an arm needs: the task, the seed, where checkpoints are kept, and a bar to move on."""

    task: Task
    seed: int
    cache: Path
    bar: Bar

    def checkpoint(self, name: str) -> Path:
        return self.cache / f"{self.task.name}-{name}-{self.seed}.pt"


# --- from scratch -----------------------------------------------------------------------------------------------------


def _from_scratch(run: Run, activation: str, name: str) -> Figures:
    task = run.task
    network = task.network(activation, run.seed)
    optimizer = task.make_optimizer(network)
    curve = []

    def note(done: int) -> None:
        if done % task.score_every == 0:
            curve.append({"step": done, "validation": training.scores(task, network, "validation")})

    training.train(
        task, network, optimizer, task.batches(run.seed), steps=range(task.steps), bar=run.bar, after_step=note
    )
    training.save(run.checkpoint(name), network, optimizer)
    return {"test": training.scores(task, network), "curve": curve}


def gelu(run: Run) -> Figures:
    """A GELU network, trained as anyone would: the checkpoint that the swaps start from."""
    return _from_scratch(run, "GELU", "gelu")


def relu(run: Run) -> Figures:
    """A ReLU network from scratch: the honest baseline."""
    return _from_scratch(run, "ReLU", "relu")


# --- the paper's protocol ---------------------------------------------------------------------------------------------


def paper(run: Run) -> Figures:
    """λ learned for a quarter of the run, then raised linearly to 7.98; swapped at the best validation score."""
    task = run.task
    network = task.network("λ-GELU", run.seed)
    optimizer = task.make_optimizer(network)
    scheduler = HardnessScheduler(network, task.steps)
    curve: list[dict[str, Any]] = []
    best: dict[str, Any] = {}

    def note(done: int) -> None:
        scheduler.step()
        if done % task.score_every:
            return
        point = _point(task, network, done, scheduler.phase)
        curve.append(point)
        sign = 1 if task.higher_is_better else -1
        for rule in ("as_is", "as_relu"):
            value = sign * point[rule]["metric"]
            if rule not in best or value > best[rule]["value"]:
                best[rule] = {"value": value, "step": done, "state": copy.deepcopy(network.state_dict())}

    training.train(
        task, network, optimizer, task.batches(run.seed), steps=range(task.steps), bar=run.bar, after_step=note
    )
    result: Figures = {"curve": curve, "last": _swapped(task, network)}
    for rule, kept in best.items():
        network.load_state_dict(kept["state"])
        result[f"best_{rule}"] = {"step": kept["step"]} | _swapped(task, network)
    return result


def _point(task: Task, network: Any, done: int, phase: str) -> dict[str, Any]:
    """A score of the validation data as it stands and as if substituted."""
    point = {"step": done, "phase": phase, "as_is": training.scores(task, network, "validation")}
    with lambda_gelu.relu_substituted(network):
        point["as_relu"] = training.scores(task, network, "validation")
    found = training.measured(task, network, 128)
    for key in ("hardness", "ser_db"):
        point[key] = [round(site[key], 4) for site in found.values()]
    return point


def _swapped(task: Task, network: Any) -> dict[str, Any]:
    """The test score as it stands and as if substituted, with the sites' figures."""
    result = {"before": training.scores(task, network)}
    with lambda_gelu.relu_substituted(network):
        result["swapped"] = training.scores(task, network)
    return result | {"sites": training.measured(task, network)}


ARMS: dict[str, Callable[[Run], Figures]] = {"gelu": gelu, "relu": relu, "paper": paper}
