"""Importing this registers all facts."""

from . import checkpoint, ddp, dtensor, fsdp, hardening, tensor_parallel, wrapped

__all__ = ["checkpoint", "ddp", "dtensor", "fsdp", "hardening", "tensor_parallel", "wrapped"]
