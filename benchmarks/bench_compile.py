"""The activation under torch.compile in both modes, on which the mode "auto" rests, and beside compiled nn.GELU;
training steps with a learned λ beside the same with nn.GELU; the overhead of a call; the import. Writes
benchmarks/results/compile.json.

Figures are medians of pairs measured alternately (paired.py). Five minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lambda_gelu
from lambda_gelu import LambdaGELU, compiler
from machine import write
from paired import paired

WIDTH = 1024
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VARIANTS = ("opaque", "fuse", "nn.GELU")

Activation = Callable[[Tensor, Tensor], Tensor]
Block = Callable[[Activation, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def ours(x: Tensor, raw: Tensor) -> Tensor:
    return lambda_gelu.softplus_lambda_gelu(x, raw, temperature=0.1)


def gelu(x: Tensor, raw: Tensor) -> Tensor:
    return F.gelu(x)


BLOCKS: dict[str, Block] = {
    "alone": lambda f, x, raw, bias, factor, weight: f(x, raw),
    "after a bias": lambda f, x, raw, bias, factor, weight: f(x + bias, raw),
    "before a dropout": lambda f, x, raw, bias, factor, weight: F.dropout(f(x, raw), 0.1),
    "before a multiply": lambda f, x, raw, bias, factor, weight: f(x, raw) * factor,
    "in an MLP": lambda f, x, raw, bias, factor, weight: F.linear(f(F.linear(x, weight, bias), raw), weight),
}

# elements, dtype, blocks, pairs, seconds a turn
CONFIGURATIONS = [
    (1 << 12, torch.float32, list(BLOCKS), 9, 0.02),
    (1 << 20, torch.float32, list(BLOCKS), 9, 0.03),
    (1 << 20, torch.bfloat16, ["alone", "after a bias", "before a multiply", "in an MLP"], 9, 0.03),
    (1 << 22, torch.float32, ["alone", "before a multiply"], 7, 0.05),
    (1 << 26, torch.float32, ["alone", "after a bias", "before a multiply"], 3, 0.2),
]


class Recorder:
    """Rows, and a line with the progress for each."""

    def __init__(self, steps: int) -> None:
        self.rows: list[dict] = []
        self.steps = steps
        self.done = 0
        self.start = time.perf_counter()

    def step(self, *rows: dict) -> None:
        self.rows += rows
        self.done += 1
        print(f"[{self.done}/{self.steps}, {time.perf_counter() - self.start:.0f} s]", flush=True)
        for row in rows:
            print("   ", "  ".join(f"{key}={value}" for key, value in row.items()), flush=True)


def compiled(function: Callable[..., object], mode: str, *, dynamic: bool | None = False) -> Callable[..., object]:
    """Compiled in a mode, beside what has been compiled in another: Dynamo keeps its code by code object."""
    compiler._mode = "opaque" if mode == "nn.GELU" else mode
    new = types.FunctionType(function.__code__.replace(), globals(), closure=function.__closure__)
    return torch.compile(new, dynamic=dynamic)


def _calls(block: str, count: int, dtype: torch.dtype) -> dict[str, dict[str, Callable[[], object]]]:
    torch.manual_seed(0)
    shape = (count // WIDTH, WIDTH)
    x = torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()
    bias = torch.randn(WIDTH, device=DEVICE).to(dtype).requires_grad_()
    factor, grad = (torch.rand(shape, device=DEVICE).to(dtype) for _ in range(2))
    weight = (torch.randn(WIDTH, WIDTH, device=DEVICE) / WIDTH**0.5).to(dtype)
    raw = torch.zeros(1, device=DEVICE, requires_grad=True)
    calls: dict[str, dict[str, Callable[[], object]]] = {"forward": {}, "training": {}}
    for variant in VARIANTS:
        function = compiled(BLOCKS[block], variant)
        activation = gelu if variant == "nn.GELU" else ours

        def forward(function=function, activation=activation):
            return function(activation, x, raw, bias, factor, weight)

        def training(forward=forward):
            return torch.autograd.grad(forward(), (x, raw, bias), grad, allow_unused=True)

        training()
        calls["forward"][variant], calls["training"][variant] = forward, training
    return calls


def blocks(record: Recorder, threads: int) -> None:
    for count, dtype, names, pairs, seconds in CONFIGURATIONS:
        chosen = "opaque" if compiler._calls_kernel(torch.empty(count, device=DEVICE)) else "fuse"
        for name in names:
            rows = []
            for direction, call in _calls(name, count, dtype).items():
                options = {"threads": threads, "pairs": pairs, "seconds": seconds}
                modes = paired(call["opaque"], call["fuse"], **options)
                other = paired(call[chosen], call["nn.GELU"], **options)
                worse = modes.speedup if chosen == "fuse" else 1 / modes.speedup
                rows.append(
                    {
                        "case": name,
                        "pass": direction,
                        "dtype": str(dtype).removeprefix("torch."),
                        "elements": count,
                        "threads": threads,
                        "opaque_us": round(modes.ours * 1e6, 2),
                        "fuse_us": round(modes.other * 1e6, 2),
                        "gelu_us": round(other.other * 1e6, 2),
                        "auto": chosen,
                        "auto_over_better": round(max(1.0, worse), 3),
                        "auto_over_gelu": round(1 / other.speedup, 3),
                    }
                )
            record.step(*rows)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class GPTBlock(nn.Module):
    def __init__(self, width: int, heads: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), activation(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


def mlp(activation: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(256, 512), activation(), nn.Linear(512, 512), activation(), nn.Linear(512, 64)]
    return nn.Sequential(*layers), torch.randn(512, 256)


def gpt(activation: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    trunk = [GPTBlock(128, 4, activation) for _ in range(2)]
    model = nn.Sequential(nn.Embedding(64, 128), *trunk, nn.LayerNorm(128), nn.Linear(128, 64))
    return model, torch.randint(0, 64, (8, 64))


def _training_step(make: Callable[..., tuple[nn.Module, Tensor]], activation: type[nn.Module], compile_it: bool):
    torch.manual_seed(0)
    model, x = make(activation)
    model, x = model.to(DEVICE), x.to(DEVICE)
    target = torch.randint(0, 64, x.shape if x.dtype == torch.int64 else x.shape[:1], device=DEVICE).flatten()
    if activation is LambdaGELU:
        groups = lambda_gelu.param_groups(model, lr=1e-3)
    else:
        groups = [{"params": list(model.parameters())}]
    optimizer = torch.optim.SGD(groups, lr=1e-3)

    def loss(x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(model(x).flatten(0, -2), target)

    function = compiled(loss, "auto", dynamic=False) if compile_it else loss

    def step() -> None:
        optimizer.zero_grad()
        function(x, target).backward()
        optimizer.step()

    step()
    return step


def networks(record: Recorder, threads: int) -> None:
    for name, make in (("an MLP", mlp), ("a small GPT", gpt)):
        for compile_it in (False, True):
            with_ours, with_gelu = (_training_step(make, kind, compile_it) for kind in (LambdaGELU, nn.GELU))
            pair = paired(with_ours, with_gelu, threads=threads, pairs=41, seconds=0.05)
            record.step(
                {
                    "case": f"training step of {name}",
                    "compiled": compile_it,
                    "threads": threads,
                    "ours_us": round(pair.ours * 1e6, 1),
                    "gelu_us": round(pair.other * 1e6, 1),
                    "ours_over_gelu": round(1 / pair.speedup, 4),
                    "reach": 1.01,
                }
            )


def overhead(record: Recorder) -> None:
    x, module, hardness = torch.randn(16), LambdaGELU(), torch.tensor([1.5])
    with torch.no_grad():
        for name, call in (
            ("lambda_gelu(x, tensor)", lambda: lambda_gelu.lambda_gelu(x, hardness)),
            ("LambdaGELU()(x)", lambda: module(x)),
        ):
            pair = paired(call, lambda: F.gelu(x), pairs=31, seconds=0.02)
            record.step(
                {
                    "case": "eager call",
                    "form": name,
                    "ours_ns": round(pair.ours * 1e9),
                    "gelu_ns": round(pair.other * 1e9),
                }
            )


def importing(record: Recorder) -> None:
    code = "import time, torch; t = time.perf_counter(); import lambda_gelu; print(time.perf_counter() - t)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    milliseconds = round(statistics.median(seconds) * 1e3, 1)
    record.step({"case": "import lambda_gelu after torch", "ms": milliseconds, "reach": 150})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("blocks", "networks", "rest"), help="this part; nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch._dynamo.config.cache_size_limit = 64  # one function, many shapes and modes
    steps = {"blocks": sum(len(c[2]) for c in CONFIGURATIONS), "networks": 4, "rest": 3}
    wanted = [arguments.only] if arguments.only else list(steps)
    record = Recorder(sum(steps[part] for part in wanted))
    if "blocks" in wanted:
        blocks(record, arguments.threads)
    if "networks" in wanted:
        networks(record, arguments.threads)
    if "rest" in wanted:
        overhead(record)
        importing(record)
    if not arguments.only:
        bounds = {"device": DEVICE, "kernel_elements": {k: list(v) for k, v in compiler.KERNEL_ELEMENTS.items()}}
        print("wrote", write("compile", "python benchmarks/bench_compile.py", record.rows, bounds))


if __name__ == "__main__":
    main()
