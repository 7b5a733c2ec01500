"""What observing pre-activations costs: training steps inside lambda_gelu.observe beside the same steps outside, an MLP
and a small GPT, eager and compiled, float32 and bfloat16; the step after observation has ended; and the op beside the
forward whose input it counts. Writes benchmarks/results/observe.json.

Figures are medians of pairs measured alternately (paired.py). Four minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lambda_gelu
from bench_compile import Recorder, gpt, mlp
from lambda_gelu import LambdaGELU
from machine import write
from paired import paired

REACH = 0.05  # an observed training step may take this part longer
OBSERVATIONS = (("layer", 1), ("channel", 1), ("channel", 4))  # per, every
CHANNEL_DIM = {"layer": None, "channel": -1}
NETWORKS = {"an MLP": mlp, "a small GPT": gpt}


def network(make: Callable[..., tuple[nn.Module, Tensor]], dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = make(LambdaGELU)
    return model.to(dtype), x.to(dtype) if x.is_floating_point() else x


def training_step(model: nn.Module, x: Tensor, compile_it: bool) -> Callable[[], None]:
    target = torch.randint(0, 64, x.shape if x.dtype == torch.int64 else x.shape[:1]).flatten()
    optimizer = torch.optim.SGD(lambda_gelu.param_groups(model, lr=1e-3), lr=1e-3)
    forward: Callable[[Tensor], Any] = torch.compile(model, dynamic=False) if compile_it else model

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(x).flatten(0, -2).float(), target).backward()
        optimizer.step()

    return step


def steps(record: Recorder, threads: int, pairs: int) -> None:
    for name, make in NETWORKS.items():
        for dtype in (torch.float32, torch.bfloat16):
            for compile_it in (False, True):
                for per, every in OBSERVATIONS:
                    observation = {"per": per, "every": every}
                    record.step(_step_row(name, make, dtype, compile_it, observation, threads=threads, pairs=pairs))


def _step_row(
    name: str,
    make: Callable[..., tuple[nn.Module, Tensor]],
    dtype: torch.dtype,
    compile_it: bool,
    observation: dict[str, Any],
    *,
    threads: int,
    pairs: int,
) -> dict[str, Any]:
    torch.compiler.reset()
    observed, x = network(make, dtype)
    plain, _ = network(make, dtype)
    plain_step = training_step(plain, x, compile_it)
    observed_step = training_step(observed, x, compile_it)
    options = {"threads": threads, "pairs": pairs, "seconds": 0.05}
    with contextlib.ExitStack() as stack:
        stack.enter_context(lambda_gelu.observe(observed, channel_dim=CHANNEL_DIM[observation["per"]], **observation))
        pair = paired(observed_step, plain_step, **options)
    after = paired(observed_step, plain_step, **options)
    return {
        "case": f"training step of {name}",
        "dtype": str(dtype).removeprefix("torch."),
        "compiled": compile_it,
        **observation,
        "threads": threads,
        "plain_us": round(pair.other * 1e6, 1),
        "observed_us": round(pair.ours * 1e6, 1),
        "overhead": round(1 / pair.speedup - 1, 4),
        "overhead_when_ended": round(1 / after.speedup - 1, 4),
        "reach": REACH,
    }


def operation(record: Recorder, threads: int) -> None:
    """The op alone: ns per element, and its share of the forward of the activation on the same input."""
    observe_ = torch.ops.lambda_gelu.observe_
    for dtype in (torch.float32, torch.bfloat16):
        for elements in (1 << 14, 1 << 18, 1 << 22):
            x = torch.randn(elements // 256, 256).to(dtype)
            hardness = torch.tensor([1.5])
            for per, rows in (("layer", 1), ("channel", 256)):
                counts = torch.zeros(rows, 256, dtype=torch.int64)
                moments = torch.zeros(rows, 4, dtype=torch.float64)

                def count(x=x, counts=counts, moments=moments) -> None:
                    observe_(x, counts, moments, 1)

                def forward(x=x, hardness=hardness) -> Tensor:
                    return lambda_gelu.lambda_gelu(x, hardness)

                pair = paired(count, forward, threads=threads, pairs=15, seconds=0.03)
                record.step(
                    {
                        "case": "observe_ alone",
                        "dtype": str(dtype).removeprefix("torch."),
                        "elements": elements,
                        "per": per,
                        "threads": threads,
                        "ours_ns_per_element": round(pair.ours * 1e9 / elements, 4),
                        "forward_ns_per_element": round(pair.other * 1e9 / elements, 4),
                        "ours_over_forward": round(1 / pair.speedup, 3),
                    }
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=41, help="of training steps (default 41)")
    parser.add_argument("--only", choices=("steps", "operation"), help="this part; nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    record = Recorder({"steps": 24, "operation": 12}.get(arguments.only, 36))
    if arguments.only != "operation":
        steps(record, arguments.threads, arguments.pairs)
    if arguments.only != "steps":
        operation(record, arguments.threads)
    if not arguments.only:
        print("wrote", write("observe", "python benchmarks/bench_observe.py", record.rows))


if __name__ == "__main__":
    main()
