"""Trains a λ-GELU network on handwritten digits in one process or in many, and swaps it to ReLU.

    python train_distributed.py
    torchrun --nproc-per-node 2 train_distributed.py --engine fsdp2

λ, its schedule and the result are the same either way, but for the order in which floating-point sums are formed. What
is particular to several processes is in `distributed()` and `batches()`; λ-GELU needs nothing particular.
Needs: pip install 'lambda-gelu[demo]'.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch import distributed as dist

import lambda_gelu
from digits import accuracy, load_digits, make_network, split
from lambda_gelu import HardnessScheduler, LambdaGELU

BATCH_SIZE = 60  # over all processes; 1, 2, 3, 4, 5 and 6 of them share it evenly
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, LR_MULTIPLIER = 0.05, 0.9, 1e-4, 1.0


def distributed(network: nn.Module, engine: str, device: torch.device) -> nn.Module:
    """The network as `engine` trains it; as it is where there is only this process."""
    if not dist.is_initialized():
        return network
    if engine == "ddp":
        return nn.parallel.DistributedDataParallel(network)
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    return fully_shard(network, mesh=mesh)


def batches(count: int, rank: int, world_size: int, order: torch.Generator) -> Iterator[Tensor]:
    """Which examples this process takes of every batch. All draw the same order, since all seed it alike."""
    for batch in torch.randperm(count, generator=order).split(BATCH_SIZE):
        if len(batch) == BATCH_SIZE:  # the last one cannot be shared evenly
            yield batch[rank::world_size]


def train(arguments: argparse.Namespace, rank: int, world_size: int, device: torch.device) -> None:
    def say(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    digits = split(*(tensor.to(device) for tensor in load_digits()))
    torch.manual_seed(arguments.seed)  # the same weights everywhere
    network = make_network(LambdaGELU).to(device)
    model = distributed(network, arguments.engine, device)
    groups = lambda_gelu.param_groups(model, lr=LEARNING_RATE, lr_multiplier=LR_MULTIPLIER, weight_decay=WEIGHT_DECAY)
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM)
    scheduler = HardnessScheduler(model, arguments.epochs)

    order = torch.Generator().manual_seed(arguments.seed)
    say(f"{world_size} process(es), {arguments.engine if world_size > 1 else 'no engine'}")
    say("epoch phase    accuracy as ReLU  λ of each site")
    for epoch in range(arguments.epochs):
        phase = scheduler.phase
        for share in batches(len(digits.train_y), rank, world_size, order):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(digits.train_x[share]), digits.train_y[share]).backward()
            optimizer.step()
        scheduler.step()
        before = accuracy(model, digits)  # on every process, as fully_shard asks for
        with lambda_gelu.relu_substituted(model):
            after = accuracy(model, digits)
        hardness = " ".join(f"{site.item():.6f}" for site in scheduler.get_last_hardness().values())
        say(f"{epoch + 1:5} {phase:8} {before:8.2f} {after:7.2f}  {hardness}")

    before = accuracy(model, digits)
    report = lambda_gelu.to_relu_(network)  # not the DistributedDataParallel around it, which cannot lose parameters
    after = accuracy(network, digits)
    say(f"{report}\naccuracy {before:.2f} % before the swap, {after:.2f} % after it: cost {before - after:+.2f} points")


def main() -> None:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("ddp", "fsdp2"), default="ddp", help="for several processes (default ddp)")
    parser.add_argument("--epochs", type=int, default=20, help="default 20")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    arguments = parser.parse_args()

    rank, local_rank, world_size = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size:  # torchrun has started this
        dist.init_process_group()
    try:
        train(arguments, rank, max(world_size, 1), device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
