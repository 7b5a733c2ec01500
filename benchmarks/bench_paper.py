"""What a training step of the paper's systems costs with a learned λ, beside the same step with nn.GELU and with
nn.ReLU; and whether two cores are kept busy better by two runs or by one run on two threads. Writes
benchmarks/results/paper.json.

A step is forward, loss, backward, clipping where the system clips, and optimizer, with the networks, optimizers and
batch sizes of examples/paper/systems; on a CPU those of full size get a smaller batch, which is told. The inputs are
random: no step depends on what they are. The three networks are timed in turn (paired.py); figures are medians, and a
ratio is the median of the rounds' ratios. Those of full size are timed a second time in a process that keeps the memory
it frees. The two cores train on the data themselves (--data-dir), and are left out where those are missing. Four
minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the package examples

from bench_compile import Recorder  # noqa: E402
from examples.datasets import MissingDataError, data_dir  # noqa: E402
from examples.paper.arm import GELU, RELU, UNIFORM, Arm  # noqa: E402
from examples.paper.system import Split  # noqa: E402
from examples.paper.systems import SYSTEMS  # noqa: E402
from examples.paper.training import Run, Trainer  # noqa: E402
from machine import write  # noqa: E402
from paired import in_turn, keep_memory  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ARMS = (UNIFORM, GELU, RELU)
LEARNED = dataclasses.replace(UNIFORM, hardens=False)
NEVER = 10**9  # steps, of which hardening starts after a quarter


@dataclass(frozen=True)
class Case:
    """A step of a system.

    Attributes:
        inputs: makes so many examples, as the system's data hold them.
        reach: the most that λ may cost, relative to nn.GELU.
        small_batch: what a CPU gets. Default None: the system's batch.
        remark: what else differs from the system.
    """

    system: str
    inputs: Callable[[int], Split]
    reach: float = 1.01
    small_batch: int | None = None
    remark: str = ""


def features(width: int, classes: int) -> Callable[[int], Split]:
    return lambda count: (torch.randn(count, width), torch.randint(classes, (count,)))


def pixels(size: int, classes: int) -> Callable[[int], Split]:
    return lambda count: (
        torch.randint(256, (count, 3, size, size), dtype=torch.uint8),
        torch.randint(classes, (count,)),
    )


def tokens(vocabulary: int, context: int) -> Callable[[int], Split]:
    def draw(count: int) -> Split:
        text = torch.randint(vocabulary, (count, context + 1))
        return text[:, :-1], text[:, 1:]

    return draw


CASES = (
    Case("adult", features(108, 2), reach=1.04),
    Case("fashion-mnist", features(784, 10), reach=1.04),
    Case("resnet8-cifar10", pixels(32, 10)),
    Case("vit4x96-tinyimagenet20", pixels(64, 20)),
    Case("gpt4x128-bytes", tokens(256, 64)),
    Case("gpt4x128-words4k", tokens(4096, 64)),
    Case("resnet18-cifar10", pixels(32, 10), small_batch=8),
    Case("deit-tiny-tinyimagenet", pixels(64, 200), small_batch=4),
    Case("gpt2-bytes", tokens(256, 256), small_batch=1, remark="context 256"),
)
TWO_CORES = ("adult", "fashion-mnist")
PATIENCE = 60.0  # seconds, for an epoch of one or two


def training_step(arm: Arm, case: Case, batch: int) -> Callable[[], None]:
    """A step of an arm in the phase where λ is learned."""
    system = SYSTEMS[case.system]
    torch.manual_seed(0)
    network = arm.network(system).to(DEVICE)
    optimizer = system.make_optimizer(network, system.lr_multiplier)
    scheduler = arm.scheduler(network, NEVER)
    x, target = system.batch(case.inputs(batch), slice(None), DEVICE)
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step() -> None:
        optimizer.zero_grad()
        loss: Tensor = system.loss(network(x), target)
        loss.backward()
        if system.clip is not None:
            nn.utils.clip_grad_norm_(weights, system.clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()

    return step


def step_row(case: Case, budget: float, *, keeps_memory: bool) -> dict[str, Any]:
    """Medians in microseconds, and λ and ReLU relative to nn.GELU."""
    system = SYSTEMS[case.system]
    batch = case.small_batch if DEVICE == "cpu" and case.small_batch else system.batch_size
    told = [case.remark] if case.remark else []
    told += ["memory kept"] if keeps_memory else []
    told += [f"batch {batch} instead of {system.batch_size}"] if batch != system.batch_size else []
    ours, gelu, relu = in_turn([training_step(arm, case, batch) for arm in ARMS], budget=budget)
    ratios = [a / b for a, b in zip(ours, gelu, strict=True)]
    first, median, third = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "case": "training step",
        "system": case.system,
        "title": system.title,
        "batch": batch,
        "differs": ", ".join(told),
        "keeps_memory": keeps_memory,
        "device": DEVICE,
        "threads": torch.get_num_threads(),
        "rounds": len(ratios),
        "ours_us": round(statistics.median(ours) * 1e6, 1),
        "gelu_us": round(statistics.median(gelu) * 1e6, 1),
        "relu_us": round(statistics.median(relu) * 1e6, 1),
        "ours_over_gelu": round(median, 4),
        "quartiles": [round(first, 4), round(third, 4)],
        "relu_over_gelu": round(statistics.median(b / a for a, b in zip(gelu, relu, strict=True)), 4),
        "reach": case.reach,
    }


def steps(record: Recorder, names: list[str], budget: float) -> None:
    """Those of full size come last, again with all memory kept, which cannot be taken back."""
    for case in CASES:
        if case.system in names:
            record.step(step_row(case, budget, keeps_memory=False))
    if keep_memory():
        for case in CASES:
            if case.small_batch is not None and case.system in names:
                record.step(step_row(case, budget, keeps_memory=True))


# --- two cores --------------------------------------------------------------------------------------------------------


def epoch_seconds(name: str, folder: Path, threads: int, connection: Connection) -> None:
    """Trains an epoch whenever it is asked to, with all that the runner notes, and answers with its seconds."""
    torch.set_num_threads(threads)
    system = dataclasses.replace(SYSTEMS[name], epochs=1)
    data = system.load(folder, False)
    while True:
        connection.recv()
        with tempfile.TemporaryDirectory() as scratch:
            run = Run(system, LEARNED, 0, Path(scratch), Path(scratch))
            record = Trainer(run, data).train()
        connection.send(sum(record.epochs[-1]["seconds"].values()))


class Trainers:
    """Processes that train the same system, each on so many threads."""

    def __init__(self, name: str, folder: Path, threads: list[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for count in threads:
            ours, theirs = context.Pipe()
            process = context.Process(target=epoch_seconds, args=(name, folder, count, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def seconds(self, *chosen: int) -> float:
        """Of one epoch, where these train at the same time: the mean over them."""
        for index in chosen:
            self._pipes[index].send(True)
        late = [index for index in chosen if not self._pipes[index].poll(PATIENCE)]
        if late:
            raise TimeoutError(f"no epoch within {PATIENCE:g} s: something else keeps the cores busy")
        return statistics.fmean(self._pipes[index].recv() for index in chosen)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def two_cores(record: Recorder, folder: Path, rounds: int) -> None:
    for name in TWO_CORES:
        trainers = Trainers(name, folder, [1, 1, 2])
        try:
            trainers.seconds(0, 1), trainers.seconds(2)  # loads, warms up
            pairs = [(trainers.seconds(0, 1), trainers.seconds(2), trainers.seconds(0)) for _ in range(rounds)]
        except TimeoutError as error:
            print(f"{name} on two cores left out: {error}", flush=True)
            continue
        finally:
            trainers.close()
        side_by_side, together, alone = zip(*pairs, strict=True)
        record.step(
            {
                "case": "two cores",
                "system": name,
                "title": SYSTEMS[name].title,
                "rounds": rounds,
                "alone_s": round(statistics.median(alone), 3),
                "side_by_side_s": round(statistics.median(side_by_side), 3),
                "two_threads_s": round(statistics.median(together), 3),
                "speedup_of_two_runs": round(statistics.median(2 * b / a for a, b, _ in pairs), 3),
            }
        )


def has_data(name: str, folder: Path) -> bool:
    try:
        SYSTEMS[name].load(folder, False)
    except MissingDataError as error:
        print(f"left out: {error}", flush=True)
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="default: $LAMBDA_GELU_DATA, else ./data")
    parser.add_argument("--seconds", type=float, default=10.0, help="for the steps of one system (default 10)")
    parser.add_argument("--rounds", type=int, default=7, help="of epochs on two cores (default 7)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="'cores', or systems; nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = [case.system for case in CASES]
    only = arguments.only or [*known, "cores"]
    unknown = sorted(set(only) - {*known, "cores"})
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}: there are cores, {', '.join(known)}")
    names = [name for name in known if name in only]
    folder = data_dir(arguments.data_dir)
    cores = "cores" in only and (os.cpu_count() or 1) > 1 and all(has_data(name, folder) for name in TWO_CORES)
    twice = sum(case.small_batch is not None and case.system in names for case in CASES)
    record = Recorder(len(names) + twice + (len(TWO_CORES) if cores else 0))
    steps(record, names, arguments.seconds)
    if cores:
        two_cores(record, folder, arguments.rounds)
    if not arguments.only:
        print("wrote", write("paper", "python benchmarks/bench_paper.py", record.rows))


if __name__ == "__main__":
    main()
