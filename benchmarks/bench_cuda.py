"""The op on a GPU, beside copies of as many bytes and beside what users would call otherwise. `make gpu-bench`.

Writes benchmarks/results/cuda.json. Every row is the ratio of two times measured alternately, round by round, in this
process: the median over the rounds, and how far they lie apart. A time is that of as many calls as take a few
milliseconds, between two events, all of them queued before the first one starts; in the rows about latency it is that
of a loop on the host, or of the replays of a graph. Tensors of 256 MB and more are larger than any second-level cache,
so that every call reads memory. "reach" is the ratio that the project asks of itself.

`--device cpu --quick` runs all of it in small on the CPU, which says that the code works and nothing else.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import lambda_gelu
from gpu import describe_gpu, peak_bytes
from machine import write

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

forward = torch.ops.lambda_gelu.lambda_gelu.default
backward = torch.ops.lambda_gelu.lambda_gelu_backward.default
gelu_backward = torch.ops.aten.gelu_backward.default

Call = Callable[[], object]
HARDNESS = 1.5
MB, GB = 10**6, 10**9
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Cuda:
    device = "cuda"
    sizes = (256 * MB, 1 * GB, 4 * GB)
    latency_sizes = tuple(2**n for n in range(10, 27, 2))  # 1 KiB to 64 MiB
    layout_bytes = 1 * GB
    rounds, milliseconds = 15, 6.0

    def __init__(self) -> None:
        self.synchronize = torch.cuda.synchronize

    def seconds_of(self, call: Call, repeat: int) -> float:
        """Per call, on the device."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(2_000_000)  # a millisecond, in which the host queues the calls
        start.record()
        for _ in range(repeat):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeat

    def replays_of(self, call: Call, count: int) -> Call:
        """A graph of `count` calls."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(count):
                call()
        return graph.replay

    def fits(self, size: int) -> bool:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0] > size

    def peak(self, call: Call) -> int:
        return peak_bytes(call)


class Host:
    """Stands in for the GPU in a dry run."""

    device = "cpu"
    sizes = (2**16,)
    latency_sizes = (2**10, 2**12)
    layout_bytes = 2**20
    rounds, milliseconds = 3, 0.5

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def synchronize(self) -> None:
        pass

    def seconds_of(self, call: Call, repeat: int) -> float:
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        return (time.perf_counter() - start) / repeat

    def replays_of(self, call: Call, count: int) -> Call:
        def replay() -> None:
            for _ in range(count):
                call()

        return replay

    def fits(self, size: int) -> bool:
        return True

    def peak(self, call: Call) -> int:
        call()
        return 0


Machine = Cuda | Host
Seconds = Callable[[Call, int], float]


def quartiles(values: list[float]) -> tuple[float, float]:
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


class Recorder:
    def __init__(self, machine: Machine, only: str) -> None:
        self.machine = machine
        self.only = only
        self.rows: list[dict] = []

    def compare(
        self,
        labels: dict,
        ours: Call,
        others: dict[str, tuple[Call, float | None]],
        size: int,
        seconds_of: Seconds | None = None,
    ) -> None:
        """Times `ours` and every other in turn; a row for each other, with the ratio that is asked for.

        size: bytes that one call of `ours` reads and writes.
        """
        seconds_of = seconds_of or self.machine.seconds_of
        calls = [ours, *(call for call, _ in others.values())]
        repeats = []
        for call in calls:
            call()  # allocates, compiles, loads
            self.machine.synchronize()
            one = seconds_of(call, 3)
            repeats.append(max(1, min(2000, round(self.machine.milliseconds / 1e3 / max(one, 1e-9)))))
        times: list[list[float]] = []
        for number in range(self.machine.rounds):
            order = range(len(calls)) if number % 2 == 0 else reversed(range(len(calls)))
            measured = {i: seconds_of(calls[i], repeats[i]) for i in order}
            times.append([measured[i] for i in range(len(calls))])
        mine = statistics.median(row[0] for row in times)
        for index, (name, (_, reach)) in enumerate(others.items(), start=1):
            ratios = [row[index] / row[0] for row in times]
            low, high = quartiles(ratios)
            self.rows.append(
                labels
                | {
                    "against": name,
                    "ours_us": round(mine * 1e6, 3),
                    "other_us": round(statistics.median(row[index] for row in times) * 1e6, 3),
                    "GB_per_s": round(size / mine / 1e9, 1),
                    "speedup": round(statistics.median(ratios), 4),
                    "quartiles": [round(low, 4), round(high, 4)],
                    "reach": reach,
                }
            )


def randn(machine: Machine, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=machine.device).normal_()


def hardness_of(machine: Machine, count: int = 1) -> torch.Tensor:
    return torch.full((count,), HARDNESS, device=machine.device)


def formula(x: torch.Tensor, hardness: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(hardness * x * math.sqrt(0.5)))


# --- the cases: each a name and what it does with a recorder ----------------------------------------------------------


def forward_case(record: Recorder, name: str, size: int) -> None:
    machine, dtype = record.machine, DTYPES[name]
    x = randn(machine, (size // dtype.itemsize,), dtype)
    target, hardness = torch.empty_like(x), hardness_of(machine)
    others: dict = {"copy of as many bytes": (lambda: target.copy_(x), 0.95), "F.gelu": (lambda: F.gelu(x), 1.0)}
    labels = {"case": "forward", "dtype": name, "bytes": size}
    record.compare(labels, lambda: forward(x, hardness), others, 2 * size)


def backward_case(record: Recorder, name: str, size: int) -> None:
    machine, dtype = record.machine, DTYPES[name]
    x, g = (randn(machine, (size // dtype.itemsize,), dtype) for _ in range(2))
    target, hardness = torch.empty_like(x), hardness_of(machine)
    others: dict = {
        "2 reads + 1 write (torch.add)": (lambda: torch.add(g, x, out=target), 0.93),
        "F.gelu's, without dλ": (lambda: gelu_backward(g, x), 1.0),
    }
    labels = {"case": "backward with dλ", "dtype": name, "bytes": size}
    record.compare(labels, lambda: backward(g, x, hardness), others, 3 * size)


def compiled_case(record: Recorder, name: str, size: int) -> None:
    machine, dtype = record.machine, DTYPES[name]
    x = randn(machine, (size // dtype.itemsize,), dtype).requires_grad_()
    g = randn(machine, (size // dtype.itemsize,), dtype)
    hardness = hardness_of(machine).requires_grad_()
    cast = hardness.detach().to(dtype).requires_grad_()  # in the plain formula a float32 λ would make all of it float32
    torch._dynamo.reset()
    compiled = torch.compile(formula, dynamic=False)

    def step(function: Callable, parameter: torch.Tensor) -> Call:
        return lambda: torch.autograd.grad(function(x, parameter), (x, parameter), g)

    others: dict = {"torch.compile of the formula": (step(compiled, cast), 1.3)}
    labels = {"case": "forward + backward with dλ", "dtype": name, "bytes": size}
    record.compare(labels, step(lambda_gelu.lambda_gelu, hardness), others, 5 * size)


LAYOUTS = {  # of one example, and the dimension with one λ per index
    "planes of 56 x 56": ((64, 56, 56), 1),
    "planes of 49": ((512, 7, 7), 1),
    "last dimension of 4096": ((4096,), -1),
    "last dimension of 770": ((770,), -1),
}


def layout_case(record: Recorder, name: str, layout: str) -> None:
    machine, dtype = record.machine, DTYPES[name]
    example, channel_dim = LAYOUTS[layout]
    shape = (machine.layout_bytes // (math.prod(example) * dtype.itemsize), *example)
    x, g = randn(machine, shape, dtype), randn(machine, shape, dtype)
    target, size = torch.empty_like(x), x.numel() * x.element_size()
    one, many = hardness_of(machine), hardness_of(machine, shape[channel_dim])
    labels = {"dtype": name, "bytes": size, "layout": layout}
    others: dict = {
        "copy of as many bytes": (lambda: target.copy_(x), None),
        "one λ": (lambda: forward(x, one), None),
    }
    call = functools.partial(forward, x, many, channel_dim)
    record.compare({"case": "per channel, forward"} | labels, call, others, 2 * size)
    others = {
        "2 reads + 1 write (torch.add)": (lambda: torch.add(g, x, out=target), None),
        "one λ": (lambda: backward(g, x, one), None),
    }
    call = functools.partial(backward, g, x, many, channel_dim)
    record.compare({"case": "per channel, backward"} | labels, call, others, 3 * size)


def misaligned_case(record: Recorder, name: str) -> None:
    machine, dtype = record.machine, DTYPES[name]
    count = machine.layout_bytes // dtype.itemsize
    x, g = (randn(machine, (count + 1,), dtype) for _ in range(2))
    hardness, size = hardness_of(machine), count * dtype.itemsize
    labels = {"dtype": name, "bytes": size, "layout": "one element off"}
    others: dict = {
        "aligned": (lambda: forward(x[:-1], hardness), None),
        "F.gelu, misaligned too": (lambda: F.gelu(x[1:]), None),
    }
    record.compare({"case": "misaligned, forward"} | labels, lambda: forward(x[1:], hardness), others, 2 * size)
    others = {
        "aligned": (lambda: backward(g[:-1], x[:-1], hardness), None),
        "F.gelu's, misaligned too": (lambda: gelu_backward(g[1:], x[1:]), None),
    }
    record.compare(
        {"case": "misaligned, backward"} | labels, lambda: backward(g[1:], x[1:], hardness), others, 3 * size
    )


def latency_case(record: Recorder, size: int) -> None:
    """As a loop on the host sees it, and as a graph does, in which no host takes part."""
    machine = record.machine
    x, g = (randn(machine, (size // 4,), torch.float32) for _ in range(2))
    hardness = hardness_of(machine)
    passes = {
        "forward": (lambda: forward(x, hardness), lambda: F.gelu(x), 2),
        "backward": (lambda: backward(g, x, hardness), lambda: gelu_backward(g, x), 3),
    }

    def on_the_host(call: Call, repeat: int) -> float:
        machine.synchronize()
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        machine.synchronize()
        return (time.perf_counter() - start) / repeat

    for name, (ours, gelu, tensors) in passes.items():
        labels = {"dtype": "float32", "bytes": size}
        reach = 1 / 1.1 if size == 2**10 and name == "forward" else None
        others: dict = {"F.gelu": (gelu, reach and round(reach, 3))}
        record.compare({"case": f"calls, {name}"} | labels, ours, others, tensors * size, on_the_host)
        count = 20
        others = {"F.gelu": (machine.replays_of(gelu, count), None)}
        replay = machine.replays_of(ours, count)
        case = {"case": f"graph of {count} calls, {name}"}
        record.compare(case | labels, replay, others, count * tensors * size)


def memory_case(record: Recorder, name: str, size: int) -> None:
    """With one λ, and with one per channel, whose partial sums are more."""
    machine, dtype = record.machine, DTYPES[name]
    width = 4096
    x = randn(machine, (size // (width * dtype.itemsize), width), dtype).requires_grad_()
    g = randn(machine, tuple(x.shape), dtype)
    for layout, count, asked in (("one λ", 1, {"reach_bytes": 2**20}), (f"last dimension of {width}", width, {})):
        raw = torch.zeros(count, device=machine.device, requires_grad=True)

        def ours(raw: torch.Tensor = raw) -> object:
            return torch.autograd.grad(lambda_gelu.softplus_lambda_gelu(x, raw, temperature=0.1), (x, raw), g)

        peaks = {"ours": machine.peak(ours), "F.gelu": machine.peak(lambda: torch.autograd.grad(F.gelu(x), x, g))}
        row = {"case": f"peak memory, forward + backward, {layout}", "dtype": name, "bytes": size}
        record.rows.append(row | {"ours_bytes": peaks["ours"], "other_bytes": peaks["F.gelu"]} | asked)


def cases(machine: Machine) -> Iterator[tuple[str, int, Callable[[Recorder], None]]]:
    """Name, bytes of device memory needed, and the case."""
    partial = functools.partial
    for size in machine.sizes:
        for name in DTYPES:
            yield f"forward {name}", 4 * size, partial(forward_case, name=name, size=size)
            yield f"backward {name}", 6 * size, partial(backward_case, name=name, size=size)
    for name in DTYPES:
        yield (
            f"compiled {name}",
            12 * machine.layout_bytes,
            partial(compiled_case, name=name, size=machine.layout_bytes),
        )
        for layout in LAYOUTS:
            yield f"{layout} {name}", 6 * machine.layout_bytes, partial(layout_case, name=name, layout=layout)
        yield f"misaligned {name}", 6 * machine.layout_bytes, partial(misaligned_case, name=name)
        yield f"memory {name}", 6 * machine.layout_bytes, partial(memory_case, name=name, size=machine.layout_bytes)
    for size in machine.latency_sizes:
        yield f"latency {size}", 12 * size, partial(latency_case, size=size)


def verdict(row: dict) -> str:
    where = " ".join(str(row[key]) for key in ("case", "dtype", "bytes", "layout") if key in row)
    if "ours_bytes" in row:
        more = row["ours_bytes"] - row["other_bytes"]
        missed = more >= row.get("reach_bytes", math.inf)
        return f"{where}: {more:+,} bytes" + ("  above what is asked" if missed else "")
    missed = row["reach"] is not None and row["speedup"] < row["reach"]
    return f"{where} vs {row['against']}: {row['speedup']:.3f}" + (f"  below {row['reach']}" if missed else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only the cases whose name contains this text; writes no file")
    parser.add_argument("--quick", action="store_true", help="few rounds; writes no file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run, with --quick only")
    options = parser.parse_args()
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu is a dry run: add --quick")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA device")
    if options.device == "cuda" and not lambda_gelu.build_info()["cuda_archs"]:
        parser.error("lambda_gelu was built without CUDA kernels")

    description = {} if options.quick else describe_gpu()  # before the minutes of measuring: it may fail
    machine: Machine = Cuda() if options.device == "cuda" else Host()
    if options.quick:
        machine.rounds = 3
    record = Recorder(machine, options.only)
    chosen = [case for case in cases(machine) if options.only in case[0]]
    skipped = []
    bar = tqdm(chosen, unit="case") if tqdm else None
    say = bar.write if bar else functools.partial(print, flush=True)
    for name, needed, case in bar or chosen:
        if bar:
            bar.set_postfix_str(name)
        if not machine.fits(needed):
            skipped.append(f"{name} ({needed / GB:.0f} GB)")
            continue
        before = len(record.rows)
        case(record)
        for row in record.rows[before:]:
            say(verdict(row))
    if skipped:
        print("skipped for want of memory:", ", ".join(skipped))
    if not (options.only or options.quick):
        print("wrote", write("cuda", "make gpu-bench", record.rows, description | {"skipped": skipped}))


if __name__ == "__main__":
    main()
