"""One run: a system, an arm and a seed. It can be interrupted at any step, and goes on from there to the same bits."""

from __future__ import annotations

import copy
import math
import pickle
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lambda_gelu

from . import measures, records
from .arm import Arm
from .distributed import Ranks
from .machine import describe
from .records import Line, Record
from .system import Data, System

SAVE_EVERY = 30.0  # seconds between two checkpoints, at least
SAVE_SHARE = 0.02  # of the time that may go into checkpoints
CHECK_EVERY = 50  # steps between two looks at the loss, which has to come from the device
AGREE_EVERY = 10  # steps between two questions to all processes whether one of them was told to stop

Stop = Callable[[], bool]


class InterruptedRunError(Exception):
    """The run was stopped. Its checkpoint and its record are complete up to there."""


@dataclass(frozen=True)
class Run:
    """What is trained, and where its record and its checkpoint are.

    Attributes:
        examples: only so many of each part of the data, to see whether it runs.
    """

    system: System
    arm: Arm
    seed: int
    results: Path
    cache: Path
    device: str = "cpu"
    examples: int | None = None

    @property
    def title(self) -> str:
        return f"{self.system.name}, {self.arm.name}, seed {self.seed}"

    @property
    def checkpoint(self) -> Path:
        return self.cache / self.system.name / f"{self.arm.name}-{self.seed}.pt"

    @property
    def head(self) -> Line:
        """What defines the run; a record with other settings is another run."""
        settings = self.system.settings() | {"arm": self.arm.settings(), "examples": self.examples}
        return {
            "kind": "run",
            "format": records.FORMAT,
            "system": self.system.name,
            "arm": self.arm.name,
            "seed": self.seed,
            "settings": settings,
        }

    def record(self) -> Record | None:
        """What there is of it.

        Raises:
            RecordMismatchError: where that was made with other settings.
        """
        return records.find(self.results, self.head)

    def total_steps(self, data: Data) -> int:
        return self.system.epochs * self.system.steps_of_epoch(self.cut(data))

    def cut(self, data: Data) -> Data:
        """The part of the data that it uses."""
        if self.examples is None:
            return data
        return Data(**{name: (x[: self.examples], y[: self.examples]) for name, (x, y) in vars(data).items()})


@dataclass
class Best:
    """A checkpoint that may be the one to swap."""

    epoch: int
    metric: float
    network: dict[str, Any]
    optimizer: dict[str, Any] | None
    """Where the arm trains on after the swap."""


@dataclass
class Progress:
    """Where a run stands, besides its network, its optimizer and its schedule."""

    step: int = 0
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    """The sum of the losses of the epoch so far, on the device."""
    hardness: list[list[float]] = field(default_factory=list)
    """λ at the end of the last epoch."""
    best: dict[str, Best] = field(default_factory=dict)
    epochs: list[Line] = field(default_factory=list)
    seconds: float = 0.0
    """Of training in the present epoch."""
    saving: float = 0.0
    """Seconds that its checkpoints took."""


class Trainer:
    """Trains one run, epoch by epoch, and notes what its record has to hold.

    Args:
        on_step: called after every step of training with the number of those done, and first where a run goes on from.
        stop: asked after every step; true interrupts the run.
    """

    def __init__(
        self,
        run: Run,
        data: Data,
        *,
        on_step: Callable[[int], object] = lambda step: None,
        stop: Stop = lambda: False,
        ranks: Ranks | None = None,
    ) -> None:
        self.run, self.system, self.arm, self.data = run, run.system, run.arm, run.cut(data)
        self.on_step, self.stop, self.ranks = on_step, stop, ranks or Ranks()
        batch_size = min(self.system.batch_size, len(self.data.train[1]))
        if batch_size % self.ranks.size:
            raise ValueError(
                f"{run.title}: batch_size {batch_size} must be a multiple of the number of processes, {self.ranks.size}"
            )
        self.steps_per_epoch = self.system.steps_of_epoch(self.data)
        self.total_steps = self.system.epochs * self.steps_per_epoch
        torch.manual_seed(run.seed)
        self.network = self.arm.network(self.system).to(run.device)
        if self.ranks.rank:
            torch.manual_seed(_seed(run.seed, self.ranks.rank))  # other processes drop out other neurons
        self.optimizer = self._make_optimizer(self.network)
        self.scheduler = self.arm.scheduler(self.network, self.total_steps)
        self.wrapped = self.ranks.wrapped(self.network)
        self.progress = Progress(loss=torch.zeros((), device=run.device))
        self.looks_at_every_loss = run.device == "cpu" and self.ranks.size == 1
        self.saved_at, self.save_after = time.monotonic(), SAVE_EVERY

    def _make_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        multiplier = self.system.lr_multiplier if self.arm.lr_multiplier is None else self.arm.lr_multiplier
        return self.system.make_optimizer(network, multiplier)

    # --- the whole ---------------------------------------------------------------------------------------------------

    def train(self) -> Record:
        """To the end, from the checkpoint if there is one.

        Raises:
            InterruptedRunError: where `stop` says so.
            RecordMismatchError: where a record or checkpoint of other settings is in the way.
        """
        found = self.run.record()
        if found is not None and found.end is not None:
            return found
        self._load()
        self.on_step(self.progress.step)
        head = self.run.head | {
            "sites": self._site_names(),
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "steps_per_epoch": self.steps_per_epoch,
            "machine": describe(self.run.device, self.ranks.size),
        }
        record = Record(head, list(self.progress.epochs))
        self._written(record)
        if not record.epochs:
            self._note(record)
        for epoch in range(len(record.epochs), self.system.epochs + 1):
            where = self._train_epoch(epoch)
            if where is not None:
                return self._ended(record, {"status": "non-finite loss", "where": where})
            self._note(record)
        self._save()
        return self._ended(record, {"status": "finished", "where": None} | self._outcome(record))

    def _site_names(self) -> list[str]:
        network = measures.with_sites(self.network)
        return [] if network is None else list(lambda_gelu.find_sites(network))

    def _ended(self, record: Record, end: Line) -> Record:
        seconds = sum(sum(epoch["seconds"].values()) for epoch in record.epochs) + end.pop("seconds", 0.0)
        record.end = {"kind": "end"} | end | {"seconds": seconds}
        self._written(record)
        if self.ranks.rank == 0:
            self.run.checkpoint.unlink(missing_ok=True)
        return record

    def _written(self, record: Record) -> None:
        if self.ranks.rank == 0:
            records.write(self.run.results, record)

    # --- an epoch ----------------------------------------------------------------------------------------------------

    def _train_epoch(self, epoch: int) -> Line | None:
        """Trains what is left of an epoch; returns where the loss stopped being finite."""
        order = torch.Generator().manual_seed(_seed(self.run.seed, epoch))
        chosen = torch.randperm(len(self.data.train[1]), generator=order)
        first = (epoch - 1) * self.steps_per_epoch
        self.network.train()
        while self.progress.step < first + self.steps_per_epoch:
            started = time.perf_counter()
            step = self.progress.step
            start = (step - first) * self.system.batch_size
            rows = chosen[start : start + self.system.batch_size]
            self.progress.loss += self._train_step(self.wrapped, self.optimizer, step, rows)
            done = self.progress.step = step + 1
            is_last = done == first + self.steps_per_epoch
            if self._looks_at_the_loss(done, is_last) and not math.isfinite(self._loss_sum()):
                return {"epoch": epoch, "step": done}
            if self.scheduler is not None:
                self.scheduler.step()
            self.progress.seconds += time.perf_counter() - started
            self.on_step(done)
            if is_last or self._may_pause(done):
                self._pause(done)
        self.ranks.level(self.network)
        return None

    def _looks_at_the_loss(self, done: int, is_last: bool) -> bool:
        """Also before hardening starts, which refuses a λ that is not finite."""
        is_onset = self.scheduler is not None and self.scheduler.onset_step == done
        return self.looks_at_every_loss or is_last or is_onset or done % CHECK_EVERY == 0

    def _may_pause(self, done: int) -> bool:
        """The same in all processes; one alone has nobody to ask."""
        return self.ranks.size == 1 or done % AGREE_EVERY == 0

    def _pause(self, done: int) -> None:
        """Saves where that is due in one of the processes, and stops where one of them was told to."""
        asked = self.ranks.gathered((self.stop(), time.monotonic() - self.saved_at > self.save_after))
        must_stop, must_save = (any(column) for column in zip(*asked, strict=True))
        if must_stop or must_save:
            self._save()
        if must_stop:
            raise InterruptedRunError(f"{self.run.title}: stopped after step {done} of {self.total_steps}")

    def _train_step(self, network: nn.Module, optimizer: torch.optim.Optimizer, step: int, chosen: Tensor) -> Tensor:
        """One step on these examples, of which every process takes its part; returns the loss, detached."""
        system, ranks = self.system, self.ranks
        rate = system.rate(step, self.steps_per_epoch, system.epochs)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        noise = torch.Generator().manual_seed(_seed(self.run.seed, step, ranks.rank))
        x, target = system.batch(self.data.train, chosen[ranks.rank :: ranks.size], self.run.device, noise)
        optimizer.zero_grad()
        loss = system.loss(network(x), target)
        loss.backward()
        if system.clip is not None:
            weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(weights, system.clip)
        optimizer.step()
        return loss.detach()

    # --- what is noted -----------------------------------------------------------------------------------------------

    def _note(self, record: Record) -> None:
        """Measures the network at the end of an epoch, or before the first, and adds the line to the record."""
        run, system, data, ranks = self.run, self.system, self.data, self.ranks
        progress = self.progress
        seconds = {"train": progress.seconds}
        with _timed(seconds, "validation"):
            score = measures.score(system, self.network, data.held_out, run.device, ranks)
        as_relu, statistics = None, None
        with _timed(seconds, "as_relu"):
            network = measures.with_sites(self.network)
            if network is not None:
                with lambda_gelu.relu_substituted(network):
                    as_relu = measures.score(system, network, data.held_out, run.device, ranks)
        with _timed(seconds, "statistics"):
            sites: Line = {key: [] for key in ("hardness", "sigma", "kappa", "ser_db", "zeros", "drift")}
            if network is not None:
                statistics = measures.observed(system, network, data.calibration, run.device, ranks)
                now = measures.hardness(network)
                sites = measures.sites(network, statistics)
                sites["drift"] = measures.drift(now, progress.hardness or now)
                progress.hardness = now
            train_loss = self._loss_sum() / (self.steps_per_epoch * ranks.size) if progress.step else None
            if self.scheduler is not None:
                self._steer(train_loss, score.loss, statistics)
        line = {
            "kind": "epoch",
            "epoch": len(record.epochs),
            "step": progress.step,
            "phase": self._phase(),
            "rate": self.optimizer.param_groups[0]["lr"],
            "train": None if train_loss is None else {"loss": train_loss},
            "validation": asdict(score),
            "as_relu": None if as_relu is None else asdict(as_relu),
            **sites,
        }
        with _timed(seconds, "log"):
            metrics = {"best": score.metric} | ({} if as_relu is None else {"best_as_relu": as_relu.metric})
            for rule, metric in metrics.items():
                self._keep(rule, len(record.epochs), metric)
            progress.loss.zero_()
            progress.seconds = 0.0
        seconds["log"] += progress.saving
        progress.saving = 0.0
        line["seconds"] = seconds
        if ranks.rank == 0:
            records.append(run.results, record, line)
        else:
            record.epochs.append(line)
        progress.epochs = list(record.epochs)

    def _phase(self) -> str | None:
        if self.scheduler is not None:
            return self.scheduler.phase
        return "learn" if self.arm.has_hardness else None

    def _loss_sum(self) -> float:
        return self.ranks.total(self.progress.loss.clone()).item()

    def _steer(self, train_loss: float | None, loss: float, statistics: lambda_gelu.Statistics | None) -> None:
        """Tells the schedule what it may wait for, and where λ has to go."""
        assert self.scheduler is not None
        if self.arm.tolerance_db is not None and statistics is not None and self.scheduler.phase != "done":
            self.scheduler.follow(statistics, self.arm.tolerance_db)
        if train_loss is None:
            return
        if self.arm.start == "settled":
            self.scheduler.report(loss)
        elif self.arm.allowed_loss is not None:
            self.scheduler.report(train_loss)

    def _keep(self, rule: str, epoch: int, metric: float) -> None:
        """Keeps a copy of the present network where it is the best; what has not been trained is none."""
        kept = self.progress.best.get(rule)
        if epoch > 0 and self.system.better(metric, None if kept is None else kept.metric):
            self.progress.best[rule] = Best(epoch, metric, *self._weights())

    def _weights(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        optimizer = copy.deepcopy(self.optimizer.state_dict()) if self.arm.recovery else None
        return copy.deepcopy(self.network.state_dict()), optimizer

    # --- the swap ----------------------------------------------------------------------------------------------------

    def _outcome(self, record: Record) -> Line:
        """What the swap makes of the best checkpoint by each rule, and of the last."""
        started = time.perf_counter()
        last = Best(self.system.epochs, math.nan, *self._weights())
        kept = self.progress.best | {"last": last}
        outcome = {rule: self._swapped(best, is_main=rule == "best") for rule, best in kept.items()}
        return outcome | {"seconds": time.perf_counter() - started}

    def _swapped(self, best: Best, *, is_main: bool) -> Line:
        self.network.load_state_dict(best.network)
        line: Line = {"epoch": best.epoch} | self._scores(self.network)
        network = measures.with_sites(self.network)
        if network is None:
            return line | {"swapped": None}
        statistics = measures.observed(self.system, network, self.data.calibration, self.run.device, self.ranks)
        line["sites"] = measures.facts(network, statistics)
        with lambda_gelu.relu_substituted(network):
            line["swapped"] = self._scores(network)
        if is_main:
            network = copy.deepcopy(self.network)
            optimizer = self._make_optimizer(network)
            measures.convert_(network)  # the weights stay the same objects, which the optimizer knows
            report = self._corrected_(network)
            line["corrected"] = self._scores(network) | {"kept": [site.correction for site in report.sites]}
            if best.optimizer is not None:
                optimizer.load_state_dict(best.optimizer)
                self._recover_(network, optimizer)
                line["recovered"] = self._scores(network)
        return line

    def _scores(self, network: nn.Module) -> Line:
        parts = {"validation": self.data.held_out, "test": self.data.test}
        return {
            part: asdict(measures.score(self.system, network, split, self.run.device, self.ranks))
            for part, split in parts.items()
        }

    def _corrected_(self, network: nn.Module) -> lambda_gelu.SubstitutionReport:
        """The swap, with the bias correction kept at every site where it lowers the loss on the held-out data."""
        system, data, device = self.system, self.data, self.run.device
        return lambda_gelu.to_relu_(
            network,
            correction="bias",
            calibrate=lambda model: measures.calibrate(system, model, data.calibration, device),
            evaluate=lambda model: measures.score(system, model, data.held_out, device, self.ranks).loss,
            higher_is_better=False,
            metric_name="held-out loss",
            example_inputs=system.batch(data.calibration, slice(0, 2), device)[0],
        )

    def _recover_(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Trains a swapped network on, at the last learning rate, with what its optimizer knew of every weight."""
        lambda_gelu.keep_optimizer_(optimizer, network)
        steps = max(1, round(self.arm.recovery * self.total_steps))
        order = torch.Generator().manual_seed(_seed(self.run.seed, self.system.epochs + 1))
        wrapped = self.ranks.wrapped(network)
        chosen = torch.empty(0, dtype=torch.int64)
        network.train()
        for step in range(self.total_steps, self.total_steps + steps):
            if len(chosen) < self.system.batch_size:
                chosen = torch.randperm(len(self.data.train[1]), generator=order)
            self._train_step(wrapped, optimizer, step, chosen[: self.system.batch_size])
            chosen = chosen[self.system.batch_size :]
            if self._may_pause(step + 1) and any(self.ranks.gathered(self.stop())):
                raise InterruptedRunError(f"{self.run.title}: stopped while it recovered, which begins anew")
        self.ranks.level(network)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        started = time.monotonic()
        own = {
            "loss": self.progress.loss.cpu(),
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state(self.run.device) if self._is_cuda else None,
        }
        of_processes = self.ranks.gathered(own)
        if self.ranks.rank == 0:
            self._write_checkpoint(of_processes)
        self.saved_at = time.monotonic()
        seconds = self.saved_at - started
        self.save_after = max(SAVE_EVERY, seconds / SAVE_SHARE)
        self.progress.saving += seconds

    def _write_checkpoint(self, of_processes: list[dict[str, Any]]) -> None:
        progress = vars(self.progress) | {"best": {rule: vars(best) for rule, best in self.progress.best.items()}}
        state = {
            "head": self.run.head,
            "progress": progress,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "processes": of_processes,
        }
        file = self.run.checkpoint
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(file)

    def _load(self) -> None:
        file = self.run.checkpoint
        if not file.exists():
            return
        try:
            state = torch.load(file, weights_only=True, map_location=self.run.device)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise records.RecordMismatchError(f"{file} is no checkpoint: delete it, and the run begins anew") from error
        records.check_settings(state["head"], self.run.head, file)
        kept = {rule: Best(**best) for rule, best in state["progress"].pop("best").items()}
        self.progress = Progress(**state["progress"], best=kept)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        of_processes = state["processes"]
        own = of_processes[self.ranks.rank % len(of_processes)]  # where there are more now, some are like others
        self.progress.loss = own["loss"].to(self.run.device)
        torch.set_rng_state(own["random"].cpu())
        if self._is_cuda and own["device_random"] is not None:
            torch.cuda.set_rng_state(own["device_random"].cpu(), self.run.device)

    @property
    def _is_cuda(self) -> bool:
        return self.run.device.startswith("cuda")


def _seed(*parts: int) -> int:
    """One seed for a seed, an epoch or step, and a rank: not the same for neighbours."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return mixed


@contextmanager
def _timed(seconds: dict[str, float], key: str):
    started = time.perf_counter()
    yield
    seconds[key] = time.perf_counter() - started
