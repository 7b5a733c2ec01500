"""The op as users call it, beside what they would call otherwise. Writes benchmarks/results/op.json.

Every row is a ratio to something measured alternately with it in the same process (see paired.py); "reach" is the
ratio that the project asks of itself.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import lambda_gelu
from lambda_gelu import LambdaGELU
from machine import write
from paired import paired

HARDNESS = 1.5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def formula(x: torch.Tensor, hardness: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(hardness * x * math.sqrt(0.5)))


class Recorder:
    def __init__(self, only: str) -> None:
        self.rows: list[dict] = []
        self.only = only

    def wants(self, case: str) -> bool:
        return self.only in case

    def add(self, case: str, against: str, result, elements: int, reach: float | None, **labels) -> None:
        row = {
            "case": case,
            "against": against,
            **labels,
            "elements": elements,
            "ours_ns_per_element": round(result.ours / elements * 1e9, 4),
            "other_ns_per_element": round(result.other / elements * 1e9, 4),
            "speedup": round(result.speedup, 3),
            "reach": reach,
        }
        self.rows.append(row)
        marks = " ".join(f"{k}={v}" for k, v in labels.items())
        verdict = "" if reach is None else ("  ok" if result.speedup >= reach else f"  below {reach}")
        print(f"{case:34} vs {against:22} {marks:34} n={elements:<9} {result.speedup:6.2f}x{verdict}", flush=True)


def _backward_call(function, inputs: tuple[torch.Tensor, ...], grad: torch.Tensor):
    y = function(*inputs)
    return lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True)


def against_gelu(record: Recorder) -> None:
    """F.gelu has no gradient for a hardness and loses the negative tail; ours forms both."""
    for name, dtype in DTYPES.items():
        for log2 in (16, 18, 20, 22):
            n = 1 << log2
            x = torch.randn(n).to(dtype).requires_grad_()
            hardness = torch.tensor([HARDNESS]).requires_grad_()
            grad = torch.randn(n).to(dtype)
            for threads in (1, 2):
                labels = {"dtype": name, "threads": threads}
                if record.wants("forward"):
                    with torch.no_grad():
                        pair = paired(lambda: lambda_gelu.lambda_gelu(x, hardness), lambda: F.gelu(x), threads=threads)  # noqa: B023
                    record.add("forward", "F.gelu", pair, n, 1.1, **labels)
                if record.wants("backward"):
                    torch.set_num_threads(threads)
                    ours = _backward_call(lambda_gelu.lambda_gelu, (x, hardness), grad)
                    pair = paired(ours, _backward_call(F.gelu, (x,), grad), threads=threads)
                    record.add("backward", "F.gelu", pair, n, 1.8, **labels)


def against_formula(record: Recorder) -> None:
    """With the gradient of the hardness, as a user would write it in Python, and as the compiler makes it."""
    if not record.wants("with hardness gradient"):
        return
    compiled = torch.compile(formula)
    for name, dtype in DTYPES.items():
        for log2 in (16, 18, 20, 22):
            n = 1 << log2
            x = torch.randn(n).to(dtype).requires_grad_()
            hardness = torch.tensor([HARDNESS]).to(dtype).requires_grad_()
            grad = torch.randn(n).to(dtype)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                ours = _backward_call(lambda_gelu.lambda_gelu, (x, hardness), grad)
                for against, function in (("eager formula", formula), ("torch.compile", compiled)):
                    pair = paired(ours, _backward_call(function, (x, hardness), grad), threads=threads, pairs=9)
                    labels = {"dtype": name, "threads": threads}
                    record.add("backward with hardness gradient", against, pair, n, 1.8, **labels)


def large(record: Recorder) -> None:
    """64M elements through PyTorch: fresh memory costs page faults that outweigh the arithmetic."""
    if not record.wants("64M"):
        return
    n = 1 << 26
    x = torch.randn(n)
    hardness = torch.tensor([HARDNESS])
    for threads in (1, 2):
        for against, other in (("F.gelu", lambda: F.gelu(x)), ("x.clone()", x.clone)):
            pair = paired(lambda: lambda_gelu.lambda_gelu(x, hardness), other, threads=threads, pairs=5, seconds=0.2)
            reach = 1.0 if against == "F.gelu" else None
            record.add("forward 64M, fresh memory", against, pair, n, reach, dtype="float32", threads=threads)


def against_aten(record: Recorder, executable: Path) -> None:
    """The kernels beside ATen's on warm memory that neither allocates (bench_aten.cpp)."""
    rows = json.loads(subprocess.run([executable], capture_output=True, text=True, check=True).stdout)
    for row in rows:
        row["reach"] = 1.9 if row["case"].startswith("forward") else 2.5
        print(f"{row['case']:34} vs ATen {row['dtype']} threads={row['threads']} {row['speedup']:6.2f}x")
    record.rows += rows


def small(record: Recorder) -> None:
    """Call overhead: 1,000 elements, forward and backward through Python."""
    if not record.wants("1,000"):
        return
    x = torch.randn(1000, requires_grad=True)
    module, gelu = LambdaGELU(), torch.nn.GELU()
    hardness = torch.tensor([HARDNESS], requires_grad=True)
    grad = torch.ones(1000)

    def step(function):
        def call():
            function(x).backward(grad)

        return call

    rows = {
        "functional": step(lambda t: lambda_gelu.lambda_gelu(t, hardness)),
        "module": step(module),
    }
    for name, call in rows.items():
        pair = paired(call, step(gelu), pairs=31)
        record.add("1,000 elements, forward + backward", "nn.GELU", pair, 1000, round(1 / 1.5, 3), form=name, threads=1)


def channels(record: Recorder) -> None:
    """One hardness per channel against one for all, same tensor."""
    if not record.wants("per channel"):
        return
    shapes = [
        (64, 64, 7, 7),
        (64, 64, 14, 14),
        (32, 64, 32, 32),
        (4096, 64),
        (2048, 768),
        (512, 4096),
        (2048, 770),
        (4096, 50),
    ]
    for shape in shapes:
        x = torch.randn(shape, requires_grad=True)
        grad = torch.randn(shape)
        one = torch.tensor([HARDNESS], requires_grad=True)
        many = torch.full((shape[1],), HARDNESS, requires_grad=True)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            labels = {"shape": "x".join(map(str, shape)), "threads": threads}
            with torch.no_grad():
                pair = paired(
                    lambda: lambda_gelu.lambda_gelu(x, many),  # noqa: B023
                    lambda: lambda_gelu.lambda_gelu(x, one),  # noqa: B023
                    threads=threads,
                )
            record.add("per channel, forward", "one hardness", pair, x.numel(), 0.8, **labels)
            pair = paired(
                _backward_call(lambda_gelu.lambda_gelu, (x, many), grad),
                _backward_call(lambda_gelu.lambda_gelu, (x, one), grad),
                threads=threads,
            )
            record.add("per channel, backward", "one hardness", pair, x.numel(), 0.8, **labels)


def _mlp(width: int, activation) -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers = []
    for _ in range(3):
        layers += [torch.nn.Linear(width, width), activation()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, 10))


def _training_step(width: int, batch: int, activation):
    model = _mlp(width, activation)
    x, target = torch.randn(batch, width), torch.randint(0, 10, (batch,))
    if activation is LambdaGELU:
        groups = lambda_gelu.param_groups(model, lr=1e-3)
    else:
        groups = [{"params": list(model.parameters())}]
    optimizer = torch.optim.SGD(groups, lr=1e-3)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()

    return step


def training(record: Recorder) -> None:
    if not record.wants("training step"):
        return
    torch.set_num_threads(2)
    for width, batch, pairs, slower in ((1024, 8192, 9, 1.01), (256, 128, 61, 1.04)):
        ours, gelu = _training_step(width, batch, LambdaGELU), _training_step(width, batch, torch.nn.GELU)
        pair = paired(ours, gelu, threads=2, pairs=pairs)
        labels = {"width": width, "batch": batch, "threads": 2}
        record.add("training step of an MLP", "nn.GELU", pair, batch * width, round(1 / slower, 4), **labels)


def _resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024


def peak_memory(kind: str) -> None:
    """Prints this process's peak of resident memory above its level before a forward + backward, in MiB."""
    n = 1 << 24
    x = torch.randn(n, requires_grad=True)
    hardness = torch.tensor([HARDNESS], requires_grad=True)
    if kind == "ours without reuse":
        lambda_gelu.set_gradient_reuse(False)
    function = F.gelu if kind == "F.gelu" else (lambda t: lambda_gelu.lambda_gelu(t, hardness))
    function(x[:100].detach().requires_grad_()).sum().backward()  # load everything
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    # The multiplications stand for the layers around the activation: x * 1 is its input, a gradient arrives from * 2.
    (function(x * 1.0) * 2.0).sum().backward()
    print(_resident("VmHWM") - before)


def memory(record: Recorder) -> None:
    if not record.wants("peak memory"):
        return
    peaks = {}
    for kind in ("F.gelu", "ours", "ours without reuse"):
        call = [sys.executable, __file__, "--peak-memory", kind]
        peaks[kind] = float(subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()[-1])
    for kind, peak in peaks.items():
        record.rows.append(
            {"case": "peak memory, forward + backward of 2^24 float32", "form": kind, "MiB": round(peak, 1)}
        )
        print(f"peak memory of {kind:22} {peak:7.1f} MiB")


def reuse(record: Recorder) -> None:
    """The gradient that nobody else sees, written over or not: a chain of linear, activation, linear."""
    if not record.wants("gradient reuse"):
        return
    for log2 in (18, 20, 22, 24):
        n = 1 << log2
        x = torch.randn(n, requires_grad=True)
        hardness = torch.tensor([HARDNESS], requires_grad=True)

        def step(enabled: bool, x=x, hardness=hardness):
            lambda_gelu.set_gradient_reuse(enabled)
            (lambda_gelu.lambda_gelu(x * 1.0, hardness) * 2.0).sum().backward()

        pair = paired(lambda: step(True), lambda: step(False), threads=2, pairs=9)
        lambda_gelu.set_gradient_reuse(True)
        record.add("gradient reuse on, whole step", "off", pair, n, None, dtype="float32", threads=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only the cases whose name contains this text; writes no file")
    parser.add_argument("--aten", type=Path, help="bench_aten, as CMake built it: its rows are added")
    parser.add_argument("--peak-memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_memory:
        peak_memory(options.peak_memory)
        return
    record = Recorder(options.only)
    for part in (small, training, against_gelu, against_formula, channels, large, reuse, memory):
        part(record)
    if options.aten:
        against_aten(record, options.aten)
    if not options.only:
        print("wrote", write("op", "make bench", record.rows))


if __name__ == "__main__":
    main()
