"""Measures on real data what the swap to ReLU costs, and what hardening, bias correction and recovery give back.

    python run.py run --data-dir DATA             # every task, arm and seed that has no record yet
    python run.py run --tasks gpt --arms relu gelu --seeds 0
    python run.py run --download                  # the data too, where it is not there
    python run.py report                          # tables and figures from the records alone

Tasks: scikit-learn's digits, Fashion-MNIST, and a byte-level GPT on WikiText-2. DATA holds fashion-mnist/ with the four
IDX files and wikitext-2/ with train, valid and test.txt, compressed or not. One thread a process, so that a run repeats
bit for bit; several processes may share the work. Needs: pip install 'lambda-gelu[demo]'.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path[0] = str(ROOT / "examples" / "python")  # for the package substitution and its neighbours
sys.path[1:1] = [str(ROOT), str(ROOT / "benchmarks")]  # for examples.datasets, and for machine

from examples.datasets import DATA_DIR_VARIABLE, CorruptDataError, MissingDataError, data_dir  # noqa: E402
from machine import describe  # noqa: E402
from progress import Bar, progress_bar  # noqa: E402
from substitution import arms, records, tasks  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "substitution"
CACHE = ROOT / "build" / "substitution"
PAGE = ROOT / "docs" / "substitution.md"
FIGURE = ROOT / "docs" / "substitution" / "experiments.png"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="what has no record yet")
    run.add_argument("--tasks", nargs="+", choices=list(tasks.TASKS), default=list(tasks.TASKS))
    run.add_argument("--arms", nargs="+", choices=list(arms.ARMS), default=list(arms.ARMS))
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--data-dir", type=Path, help=f"default: ${DATA_DIR_VARIABLE}, else ./data")
    run.add_argument("--download", action="store_true", help="what is not there")
    run.add_argument("--steps", type=int, help="train so many steps on a slice of the data, to see whether it runs")
    run.add_argument("--cache", type=Path, default=CACHE, help="for checkpoints (default build/substitution)")
    report = commands.add_parser("report", help="tables and figures from the records")
    report.add_argument("--page", type=Path, default=PAGE, help="with markers (default docs/substitution.md)")
    report.add_argument("--figure", type=Path, default=FIGURE, help="default docs/substitution/experiments.png")
    for command in (run, report):
        command.add_argument("--results", type=Path, default=RESULTS, help="default benchmarks/results/substitution")
    return parser.parse_args()


@contextlib.contextmanager
def claimed(record: Path, claim: Path) -> Iterator[bool]:
    """Whether this process may write a record: no other one is at it, and none has been. Ends with the process."""
    claim.parent.mkdir(parents=True, exist_ok=True)
    with claim.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield not record.exists()


def run_all(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    machine = describe() | {"threads": 1}
    for name in arguments.tasks:
        missing = [
            (arm, seed)
            for arm in arguments.arms
            for seed in arguments.seeds
            if not records.path(arguments.results, name, arm, seed).exists()
        ]
        if not missing:
            continue
        try:
            task = tasks.make(name, data_dir(arguments.data_dir), arguments.download)
        except (MissingDataError, CorruptDataError) as error:
            sys.exit(f"{name}: {error}")
        if arguments.steps is not None:
            task = task.shortened(arguments.steps, 64)
        for arm, seed in missing:
            record = records.path(arguments.results, name, arm, seed)
            with claimed(record, arguments.cache / f"{name}-{arm}-{seed}.claim") as mine:
                if mine:
                    run_one(task, arm, seed, machine, arguments)


def run_one(task: tasks.Task, arm: str, seed: int, machine: dict[str, Any], arguments: argparse.Namespace) -> None:
    bar: Bar = progress_bar(arms.step_count(arm, task), "step")
    bar.set_description(f"{task.name}, {arm}, seed {seed}")
    started = time.perf_counter()
    try:
        figures = arms.ARMS[arm](arms.Run(task, seed, arguments.cache, bar))
    except arms.MissingCheckpointError as error:
        sys.exit(f"{task.name}, {arm}, seed {seed}: {error}")
    finally:
        bar.close()
    records.write(
        arguments.results,
        {
            "task": task.name,
            "arm": arm,
            "seed": seed,
            "settings": task.settings(),
            "machine": machine,
            "seconds": round(time.perf_counter() - started, 1),
            "figures": figures,
        },
    )


def main() -> None:
    arguments = parse_arguments()
    if arguments.command == "run":
        run_all(arguments)
    else:
        from substitution import report  # noqa: PLC0415 - the picture needs matplotlib

        try:
            print(report.write(arguments.results, arguments.page, arguments.figure))
        except (OSError, ValueError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
