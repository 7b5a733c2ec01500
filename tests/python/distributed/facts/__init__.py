"""Importing this registers all facts."""

from . import ddp, dtensor, fsdp, tensor_parallel

__all__ = ["ddp", "dtensor", "fsdp", "tensor_parallel"]
