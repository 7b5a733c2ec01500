"""Trains all runs that are pending: several at a time through Ray Tune, or one after the other in this process."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch

from examples.python.progress import progress_bar, write_above

from . import distributed
from .distributed import Ranks
from .system import Data
from .training import InterruptedRunError, Run, Stop, Trainer

INTERRUPTED = 130  # what a shell says of a command that Ctrl-C ended


@dataclass(frozen=True)
class Outcome:
    """How a run ended; it goes from one process to another.

    Attributes:
        kind: ``"finished"``, ``"non-finite loss"``, ``"interrupted"`` or ``"error"``.
        message: what to tell; empty for a run that finished.
    """

    kind: str
    message: str = ""


class Interrupt:
    """Whether Ctrl-C was pressed, or the process was asked to end, in the context of this. The second time it ends."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._noted) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _noted(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if distributed.is_first():
            write_above("Stopping: every run saves where it is. Again to stop at once.")


def train(
    runs: list[Run],
    folder: Path,
    download: bool,
    *,
    count: int | None = None,
    threads: int = 1,
    stop_after: int | None = None,
) -> int:
    """Trains every run to its end, or until it is interrupted.

    Args:
        folder, download: where the data are, and whether to fetch what is missing.
        count: runs at a time. Default: as many as there are cores for `threads` each, or GPUs.
        threads: of every run. The default 1 gives the same bits everywhere, and the shortest time for many runs.
        stop_after: so many steps, as if Ctrl-C were pressed then; in this process.

    Returns:
        The exit status: 0; 1 where a run stopped at a loss that is not finite or failed; 130 after an interruption.

    Raises:
        MissingDataError, CorruptDataError: before anything is trained.
        ValueError: naming the argument.
    """
    for flag, value in (("--workers", count), ("--threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be at least 1, got {value}")
    if not runs:
        return 0
    runs = [replace(run, results=run.results.absolute(), cache=run.cache.absolute()) for run in runs]
    torch.set_num_threads(threads)
    data = {run.system.name: run.system for run in runs}
    with Interrupt() as interrupt:
        loaded = {name: system.load(folder, download) for name, system in data.items()}
        if distributed.is_launched():
            with distributed.joined(runs[0].device) as (ranks, device):
                here = [replace(run, device=device) for run in runs]
                return _status(_one_after_the_other(here, loaded, interrupt, stop_after, ranks))
        if stop_after is None and _goes_through_ray(runs, count, threads):
            from . import ray_tune  # noqa: PLC0415 - needs ray

            return _status(ray_tune.train(runs, loaded, interrupt, count=count, threads=threads))
        return _status(_one_after_the_other(runs, loaded, interrupt, stop_after, Ranks()))


def attempt(
    run: Run, data: Data, *, stop: Stop, on_step: Callable[[int], object], ranks: Ranks | None = None
) -> Outcome:
    """One run. `on_step` is given the number of steps that are done, first where the run goes on from."""
    try:
        with _claimed(run) if ranks is None or ranks.rank == 0 else contextlib.nullcontext():
            record = Trainer(run, data, stop=stop, on_step=on_step, ranks=ranks).train()
    except InterruptedRunError as error:
        return Outcome("interrupted", str(error))
    except Exception as error:
        if ranks is not None and ranks.size > 1:
            raise  # the other processes wait for this one
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return Outcome("error", f"{run.title}: {told}")
    if record.is_finished:
        return Outcome("finished")
    where = record.end["where"]
    status = record.end["status"]
    return Outcome("non-finite loss", f"{run.title}: {status} at step {where['step']}, in epoch {where['epoch']}")


@contextlib.contextmanager
def _claimed(run: Run) -> Iterator[None]:
    """Keeps others from training the same run at the same time; the claim ends with the process.

    Raises:
        RuntimeError: where another process is at it.
    """
    file = run.checkpoint.with_suffix(".claim")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as claim:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process is training this run ({file} is locked)") from None
        yield


class Overview:
    """One bar for all steps of all runs, and a line for everything that went wrong."""

    def __init__(self, runs: list[Run], data: dict[str, Data]) -> None:
        self.runs = runs
        self.steps = [run.total_steps(data[run.system.name]) for run in runs]
        self.done = [0] * len(runs)
        self.over = 0
        self.bar = progress_bar(sum(self.steps), "step") if distributed.is_first() else None
        self._describe()

    def at(self, index: int, step: int) -> None:
        """Run number `index` has done so many steps."""
        if self.bar is not None and step > self.done[index]:
            self.bar.update(step - self.done[index])
            self.done[index] = step

    def ended(self, index: int, outcome: Outcome) -> None:
        self.over += outcome.kind != "interrupted"
        if self.bar is None:
            return
        if outcome.message:
            write_above(outcome.message)
        if outcome.kind != "interrupted":
            self.at(index, self.steps[index])
        self._describe()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _describe(self) -> None:
        if self.bar is not None:
            self.bar.set_description(f"{self.over} of {len(self.runs)} runs")


def _one_after_the_other(
    runs: list[Run], data: dict[str, Data], interrupt: Interrupt, stop_after: int | None, ranks: Ranks
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return interrupt.asked or (stop_after is not None and steps >= stop_after)

    overview = Overview(runs, data)
    try:
        for index, run in enumerate(runs):
            outcome = attempt(
                run,
                data[run.system.name],
                stop=stop,
                on_step=lambda step, index=index: overview.at(index, step),
                ranks=ranks,
            )
            overview.ended(index, outcome)
            outcomes.append(outcome)
            if outcome.kind == "interrupted":
                break
    finally:
        overview.close()
    return outcomes


def _goes_through_ray(runs: list[Run], count: int | None, threads: int) -> bool:
    """Where several runs can be trained at a time."""
    on_cluster = "RAY_ADDRESS" in os.environ
    if len(runs) == 1 or count == 1 or ":" in runs[0].device:
        return False
    if count is None and not on_cluster and slots(runs[0].device, threads) == 1:
        return False
    if importlib.util.find_spec("ray") is None:
        print('No Ray (pip install "ray[tune]"): the runs are done one after the other.', file=sys.stderr)
        return False
    return True


def slots(device: str, threads: int) -> int:
    """How many runs this machine can train at a time."""
    if device == "cpu":
        return max(1, len(os.sched_getaffinity(0)) // threads)
    return max(1, torch.cuda.device_count())


def _status(outcomes: list[Outcome]) -> int:
    kinds = {outcome.kind for outcome in outcomes}
    if "interrupted" in kinds:
        return INTERRUPTED
    return int(bool(kinds & {"non-finite loss", "error"}))
