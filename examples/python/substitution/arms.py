"""What is compared. Each arm is one run with one seed, and gives the figures of one record."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import lambda_gelu
from lambda_gelu import HardnessScheduler, LambdaGELU
from lambda_gelu.protocol import Substitution
from lambda_gelu.recovery import Teacher, distillation_loss
from progress import Bar

from . import training
from .tasks import Task

Figures = dict[str, Any]


RECOVERY = 0.1  # of the steps of the training


def recovery_steps(task: Task) -> int:
    return max(1, round(RECOVERY * task.steps))


class MissingCheckpointError(FileNotFoundError):
    """An arm starts from the checkpoint of another one, which has not run here."""


@dataclass(frozen=True)
class Rate:
    """The learning rate of a recovery, from `start` to `end` times the last one of the training, linearly."""

    name: str
    start: float
    end: float

    def factor(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


CONTINUED = Rate("continued", 1.0, 1.0)
RAISED = Rate("3 times, falling to 1", 3.0, 1.0)


@dataclass
class Run:
    """What an arm needs: the task, the seed, where checkpoints are kept, and a bar to move on."""

    task: Task
    seed: int
    cache: Path
    bar: Bar

    def checkpoint(self, name: str) -> Path:
        return self.cache / f"{self.task.name}-{name}-{self.seed}.pt"

    def trained(self, activation: str) -> tuple[nn.Module, dict[str, Any]]:
        """The network that another arm has trained from scratch, and its optimizer's state."""
        path = self.checkpoint(activation.lower())
        if not path.exists():
            raise MissingCheckpointError(
                f"{path} is missing: run the arm {activation.lower()} first, without its record"
            )
        state = training.load(path)
        network = self.task.network(activation, self.seed)
        network.load_state_dict(state["network"])
        return network, state["optimizer"]

    def train_on(
        self,
        network: nn.Module,
        optimizer_state: dict[str, Any],
        rate: Rate,
        extra_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """Trains a checkpoint for RECOVERY of its steps more, with its optimizer's state, on new batches."""
        task = self.task
        optimizer = task.make_optimizer(network)
        optimizer.load_state_dict(optimizer_state)
        count = recovery_steps(task)
        training.train(
            task,
            network,
            optimizer,
            task.batches(self.seed + 1000),
            steps=range(task.steps, task.steps + count),
            bar=self.bar,
            rate=lambda step: task.rate(step) * rate.factor((step - task.steps) / count),
            extra_loss=extra_loss,
        )


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
    found = training.measured(task, network, task.curve_examples)
    for key in ("hardness", "ser_db"):
        point[key] = [round(site[key], 4) for site in found.values()]
    return point


def _swapped(task: Task, network: Any) -> dict[str, Any]:
    """The test score as it stands and as if substituted, with the sites' figures."""
    result = {"before": training.scores(task, network)}
    with lambda_gelu.relu_substituted(network):
        result["swapped"] = training.scores(task, network)
    sites = training.measured(task, network)
    with lambda_gelu.observe(network) as statistics:
        task.calibrate(network)
    for name, site in sites.items():
        site["predicted_ser_db"] = statistics[name].ser_db(site["hardness"])
    return result | {"sites": sites}


# --- this library's protocol ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """λ learned, hardened geometrically to per-site targets, swapped, recovered; as many steps as from scratch.

    The targets come from what is observed in training. Recovery goes on from the swap as it is; what the correction
    makes of it is measured on a copy.
    """

    tolerance_db: float = 30.0

    def __call__(self, run: Run) -> Figures:
        task = run.task
        network = task.network("λ-GELU", run.seed)
        optimizer = task.make_optimizer(network)
        curve: list[dict[str, Any]] = []
        figures: Figures = {"tolerance_db": self.tolerance_db, "curve": curve}

        def evaluate(network: nn.Module) -> float:
            """The loss on the held-out data; at the swap also what the test data says, and of a corrected copy."""
            if "before" not in figures:
                figures.update(_swapped(task, network))
                corrected = copy.deepcopy(network)
                figures["corrections"] = [site.correction for site in corrected_swap_(task, corrected).sites]
                figures["corrected"] = training.scores(task, corrected)
            return task.score(network, "held_out").loss

        substitution = Substitution(
            network,
            optimizer,
            total_steps=task.steps,
            tolerance_db=self.tolerance_db,
            evaluate=evaluate,
            higher_is_better=False,
            metric_name="held-out loss",
        )

        def note(done: int) -> None:
            scheduler = substitution.scheduler
            was_hardening = scheduler is not None and scheduler.phase == "harden"
            substitution.step()
            if scheduler is not None and was_hardening and scheduler.phase == "done" and has_sites(network):
                figures["hardened_step"] = done
                figures["hardened_sites"] = training.measured(task, network)
            if done % task.score_every == 0:
                if has_sites(network):
                    curve.append(_point(task, network, done, substitution.stage))
                else:
                    score = training.scores(task, network, "validation")
                    curve.append({"step": done, "phase": substitution.stage, "as_is": score, "as_relu": score})

        training.train(
            task,
            network,
            optimizer,
            task.batches(run.seed),
            steps=range(task.steps),
            bar=run.bar,
            extra_loss=lambda x, logits: substitution.extra_loss(),
            after_step=note,
        )
        figures["swap_step"] = substitution.swap_step
        return figures | {"recovered": training.scores(task, network), "report": substitution.report().to_dict()}


def has_sites(network: nn.Module) -> bool:
    return any(isinstance(module, LambdaGELU) for module in network.modules())


# --- a checkpoint that was never trained for it -----------------------------------------------------------------------


def _continued(run: Run, activation: str, rate: Rate) -> Figures:
    network, optimizer_state = run.trained(activation)
    before = training.scores(run.task, network)
    run.train_on(network, optimizer_state, rate)
    return {"before": before, "recovered": training.scores(run.task, network)}


@dataclass(frozen=True)
class Recovery:
    """One way from a GELU checkpoint to a ReLU network."""

    correction: str = "bias"
    rate: Rate = CONTINUED
    distillation: float = 0.0

    def __call__(self, run: Run) -> Figures:
        task = run.task
        network, optimizer_state = run.trained("GELU")
        as_gelu_(network)
        figures: Figures = {
            "how": {
                "correction": self.correction,
                "rate": self.rate.name,
                "distillation": f"KL × {self.distillation:g}" if self.distillation else "none",
            }
        } | _swapped(task, network)
        teacher = Teacher(network) if self.distillation else None
        report = corrected_swap_(task, network) if self.correction == "bias" else lambda_gelu.to_relu_(network)
        figures["report"] = report.to_dict()
        if self.correction != "none":
            figures["corrected"] = training.scores(task, network)

        def distilled(x: Tensor, logits: Tensor) -> Tensor:
            assert teacher is not None
            return self.distillation * distillation_loss(logits, teacher(x))

        run.train_on(network, optimizer_state, self.rate, distilled if teacher else None)
        return figures | {"recovered": training.scores(task, network)}


def corrected_swap_(task: Task, network: nn.Module) -> lambda_gelu.SubstitutionReport:
    """The swap, with the bias correction kept at every site where it improves the loss on the held-out data."""
    return lambda_gelu.to_relu_(
        network,
        correction="bias",
        calibrate=task.calibrate,
        evaluate=lambda network: task.score(network, "held_out").loss,
        higher_is_better=False,
        metric_name="held-out loss",
        example_inputs=next(task.batches(0))[0],
    )


def as_gelu_(network: nn.Module) -> None:
    """Every GELU of a network becomes a λ-GELU with λ = 1, which is the same function."""
    lambda_gelu.convert_(network)
    for site in lambda_gelu.find_sites(network).values():
        site.freeze_hardness()
        site.set_hardness(1.0)


ARMS: dict[str, Callable[[Run], Figures]] = {
    "gelu": gelu,
    "relu": relu,
    "paper": paper,
    "gelu-continued": lambda run: _continued(run, "GELU", CONTINUED),
    "relu-continued": lambda run: _continued(run, "ReLU", CONTINUED),
    "protocol": Protocol(),
    "protocol-40": Protocol(tolerance_db=40.0),
    "recovered": Recovery(),
    "recovered-distilled": Recovery(distillation=1.0),
    "recovered-raised": Recovery(rate=RAISED),
    "recovered-uncorrected": Recovery(correction="none"),
}


def step_count(arm: str, task: Task) -> int:
    """How many steps an arm trains."""
    goes_on = isinstance(ARMS[arm], Recovery) or arm.endswith("-continued")
    return recovery_steps(task) if goes_on else task.steps
