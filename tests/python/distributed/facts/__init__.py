"""Importing this registers all facts."""

from . import checkpoint, ddp, dtensor, fsdp, hardening, protocol, statistics, tensor_parallel, wrapped

__all__ = ["checkpoint", "ddp", "dtensor", "fsdp", "hardening", "protocol", "statistics", "tensor_parallel", "wrapped"]
