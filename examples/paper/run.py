"""Runs the paper's experiments: python -m examples.paper.run EXPERIMENT, from the root of the repository.

    python -m examples.paper.run list                            # what there is, and what has been run
    python -m examples.paper.run adult --data-dir DATA           # Table II on Adult: five arms, five seeds
    python -m examples.paper.run schedules --systems adult       # a study
    python -m examples.paper.run adult --arms uniform --set lr=0.01,0.05 temperature=0.1,0.5     # a sweep
    python -m examples.paper.run report                          # docs/results.md from the records alone
    torchrun --nproc-per-node 8 -m examples.paper.run resnet18-cifar10 --device cuda

Every run, that is a system, an arm and a seed, writes a record: JSON Lines, one per epoch. What has a record is not run
again; what was interrupted, with Ctrl-C too, goes on from its last step. Several runs share the cores through Ray Tune.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.datasets import CorruptDataError, MissingDataError, data_dir

from . import distributed, plan, workers
from .experiments import EXPERIMENTS
from .records import RecordMismatchError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "paper"
CACHE = ROOT / "build" / "paper"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a name of 'list'; or 'list', or 'report'")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="default: those of the experiment")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="default: all of the experiment")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many, from 0 on; default: as the experiment says")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: as the system says")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE,...", help="other settings; a sweep over several"
    )
    parser.add_argument("--device", default="cpu", help="of torch: cpu (default), cuda, cuda:1")
    parser.add_argument("--data-dir", type=Path, help="default: $LAMBDA_GELU_DATA, else ./data")
    parser.add_argument("--download", action="store_true", help="fetch what is missing, where the network allows")
    parser.add_argument("--workers", type=int, metavar="N", help="runs at a time; default: one for every core")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of every run; default 1: the same bits")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: benchmarks/results/paper")
    parser.add_argument("--cache", type=Path, default=CACHE, help="for checkpoints; default: build/paper")
    parser.add_argument("--examples", type=int, metavar="N", help="of every part of the data: to see whether it runs")
    parser.add_argument("--steps-per-epoch", type=int, metavar="N", help="the same")
    parser.add_argument("--stop-after", type=int, help=argparse.SUPPRESS)  # steps of this process, for tests
    return parser.parse_args(arguments)


def main(given: list[str] | None = None) -> None:
    arguments = parse_arguments(given)
    try:
        if arguments.experiment == "report":
            from .report import page  # noqa: PLC0415 - needs matplotlib

            print(page.write(arguments.results))
            return
        if arguments.experiment == "list":
            print(plan.overview(EXPERIMENTS, arguments.results))
            return
        runs = plan.runs(arguments)
        pending = [run for run in runs if plan.is_pending(run)]
        if distributed.is_first():
            print(f"{arguments.experiment}: {len(runs)} runs, {len(runs) - len(pending)} of them done", file=sys.stderr)
        outcome = workers.train(
            pending,
            data_dir(arguments.data_dir),
            arguments.download,
            count=arguments.workers,
            threads=arguments.threads,
            stop_after=arguments.stop_after,
        )
    except (MissingDataError, CorruptDataError, RecordMismatchError, plan.UnknownNameError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}" if distributed.is_first() else 1)
    except KeyboardInterrupt:
        sys.exit(workers.INTERRUPTED)
    sys.exit(outcome)


if __name__ == "__main__":
    main()
