"""Several runs at a time: every run is a trial of Ray Tune, on this machine or on the cluster of $RAY_ADDRESS.

Results and checkpoints are written by the processes themselves: on a cluster their folders, and the checkout, are
shared by all machines. The data are read once, here, and shared through Ray's object store.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy
import ray
import torch
from ray import tune
from ray.tune.search import Searcher

from .system import Data
from .training import Run
from .workers import Interrupt, Outcome, Overview, attempt, slots

REPORT_EVERY = 2.0  # seconds between two reports of a run
ASK_EVERY = 0.5  # seconds between two looks whether to stop
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""Ray neither reports its use, nor writes logs of its own, nor takes Ctrl-C, nor lets others go first."""

_received: dict[str, Data] = {}
"""In a worker: the data that it has been given, by the name of their object."""


def train(
    runs: list[Run], data: dict[str, Data], interrupt: Interrupt, *, count: int | None, threads: int
) -> list[Outcome]:
    """As :func:`examples.paper.workers.train`, which says what the arguments are."""
    _start(runs[0].device, count, threads)
    folder = runs[0].cache / f"ray-{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    stop_file = folder / "stop"
    overview = Overview(runs, data)
    try:
        objects = {name: ray.put(_as_arrays(split)) for name, split in data.items()}
        watcher = _Watcher(overview, interrupt, stop_file)
        is_cuda = runs[0].device.startswith("cuda")
        tuner = tune.Tuner(
            tune.with_resources(_trial(runs, objects, threads, stop_file), {"cpu": threads, "gpu": int(is_cuda)}),
            tune_config=tune.TuneConfig(
                search_alg=_Queue(len(runs), interrupt),
                num_samples=len(runs),
                max_concurrent_trials=count,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="runs", storage_path=str(folder), verbose=0, callbacks=[watcher], log_to_file=False
            ),
        )
        tuner.fit()
        if interrupt.asked:
            return [*watcher.outcomes, Outcome("interrupted")]
        return watcher.outcomes
    finally:
        overview.close()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start(device: str, count: int | None, threads: int) -> None:
    # Processes find the package as this one does.
    of_processes = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ} | of_processes)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if "RAY_ADDRESS" in os.environ:
        ray.init(address=os.environ["RAY_ADDRESS"], runtime_env={"env_vars": of_processes}, **quiet)
        return
    ray.init(
        address="local",
        num_cpus=(count or slots(device, threads)) * threads,
        num_gpus=None if device.startswith("cuda") else 0,
        include_dashboard=False,
        **quiet,
    )


# --- in the workers ---------------------------------------------------------------------------------------------------


def _trial(runs: list[Run], objects: dict[str, ray.ObjectRef], threads: int, stop_file: Path) -> Any:
    """What a worker does for one run; the same process does many."""

    def trial(config: dict[str, int]) -> None:
        run = runs[config["index"]]
        torch.set_num_threads(threads)
        told = asked = time.monotonic()
        must_stop = False

        def on_step(step: int) -> None:
            nonlocal told
            if time.monotonic() - told > REPORT_EVERY:
                tune.report({"index": config["index"], "step": step})
                told = time.monotonic()

        def stop() -> bool:
            nonlocal asked, must_stop
            if time.monotonic() - asked > ASK_EVERY:
                must_stop, asked = stop_file.exists(), time.monotonic()
            return must_stop

        outcome = attempt(run, _received_data(objects[run.system.name]), stop=stop, on_step=on_step)
        tune.report({"index": config["index"], "outcome": vars(outcome)})

    return trial


def _received_data(reference: ray.ObjectRef) -> Data:
    key = reference.hex()
    if key not in _received:
        arrays = ray.get(reference)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            splits = {name: tuple(map(torch.from_numpy, pair)) for name, pair in arrays.items()}
        _received[key] = Data(**splits)
    return _received[key]


def _as_arrays(data: Data) -> dict[str, tuple[numpy.ndarray, numpy.ndarray]]:
    """What Ray shares among processes without copies."""
    return {name: (x.numpy(), y.numpy()) for name, (x, y) in vars(data).items()}


# --- in the process that was started ----------------------------------------------------------------------------------


class _Queue(Searcher):
    """The runs in their order; after an interruption there are no more."""

    def __init__(self, count: int, interrupt: Interrupt) -> None:
        super().__init__()
        self.indices = iter(range(count))
        self.interrupt = interrupt

    def suggest(self, trial_id: str) -> dict[str, int] | str:
        index = None if self.interrupt.asked else next(self.indices, None)
        return Searcher.FINISHED if index is None else {"index": index}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Watcher(tune.Callback):
    """Shows what the trials report, and tells them to stop."""

    def __init__(self, overview: Overview, interrupt: Interrupt, stop_file: Path) -> None:
        self.overview, self.interrupt, self.stop_file = overview, interrupt, stop_file
        self.outcomes: list[Outcome] = []

    def on_step_begin(self, iteration: int, trials: list, **info: object) -> None:
        if self.interrupt.asked and not self.stop_file.exists():
            self.stop_file.touch()

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: object) -> None:
        if "outcome" in result:
            self._ended(result["index"], Outcome(**result["outcome"]))
        else:
            self.overview.at(result["index"], result["step"])

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: object) -> None:
        """The process of a run is gone: what raises an error there reports it."""
        index = trial.config["index"]
        title = self.overview.runs[index].title
        self._ended(index, Outcome("error", f"{title}: its process died ({trial.get_error()}); it can be resumed"))

    def _ended(self, index: int, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.overview.ended(index, outcome)
