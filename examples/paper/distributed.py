"""How the work of one run is shared among processes: those that torchrun starts, or one alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

import lambda_gelu

T = TypeVar("T")


class Ranks:
    """One process, which does all of it."""

    rank = 0
    size = 1

    def wrapped(self, network: nn.Module) -> nn.Module:
        """What is called in training, so that gradients are the mean of those of all processes."""
        return network

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        return values

    def merged(self, statistics: lambda_gelu.Statistics) -> lambda_gelu.Statistics:
        """What all processes observed."""
        return statistics

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        return [value]

    def level(self, network: nn.Module) -> None:
        """The first process's buffers for all: running statistics of batches differ."""


class Group(Ranks):
    """The processes of torchrun; every method is called by all of them."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()

    def wrapped(self, network: nn.Module) -> nn.Module:
        device = next(network.parameters()).device
        return nn.parallel.DistributedDataParallel(network, device_ids=None if device.type == "cpu" else [device])

    def total(self, values: Tensor) -> Tensor:
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values

    def merged(self, statistics: lambda_gelu.Statistics) -> lambda_gelu.Statistics:
        return statistics.all_reduce()

    def gathered(self, value: T) -> list[T]:
        values: list[T] = [value] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def level(self, network: nn.Module) -> None:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return not is_launched() or os.environ["RANK"] == "0"


@contextlib.contextmanager
def joined(device: str) -> Iterator[tuple[Group, str]]:
    """The group of torchrun's processes and this one's device; the group ends with the context if it began with it.

    Raises:
        ValueError: for a device with a number, since every process has its own.
    """
    if ":" in device:
        raise ValueError(f"--device must be cpu or cuda under torchrun, which has one for each process, got {device}")
    is_cuda = device == "cuda"
    if is_cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if torch.distributed.is_initialized():
        yield Group(), device
        return
    torch.distributed.init_process_group("nccl" if is_cuda else "gloo")
    try:
        yield Group(), device
    finally:
        torch.distributed.destroy_process_group()
