"""Importing this registers all facts."""

from . import ddp, dtensor, fsdp, tensor_parallel, wrapped

__all__ = ["ddp", "dtensor", "fsdp", "tensor_parallel", "wrapped"]
