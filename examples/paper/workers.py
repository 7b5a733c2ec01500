"""Trains all runs that are pending: in this process, one after the other."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import torch

from examples.python.progress import progress_bar

from .system import Data
from .training import InterruptedRunError, Run, Trainer


def train(
    runs: list[Run], folder: Path, download: bool, *, count: int | None = None, stop_after: int | None = None
) -> int:
    """Returns the exit status: 0, 1 where a run stopped at a loss that is not finite, 130 where it was interrupted."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    before = signal.signal(signal.SIGINT, stop)
    torch.set_num_threads(1)
    loaded: dict[str, Data] = {}
    status = 0
    try:
        for run in runs:
            if run.system.name not in loaded:
                loaded[run.system.name] = run.system.load(folder, download)
            trainer = Trainer(run, loaded[run.system.name], stop=lambda: stopped)
            bar = progress_bar(trainer.total_steps, "step")
            bar.set_description(run.title)
            trainer.advance = bar.update
            try:
                record = trainer.train()
            except InterruptedRunError as error:
                print(error, file=sys.stderr)
                return 130
            finally:
                bar.close()
            if not record.is_finished:
                where = record.end["where"]
                print(f"{run.title}: {record.end['status']} at step {where['step']}", file=sys.stderr)
                status = 1
    finally:
        signal.signal(signal.SIGINT, before)
    return status
