"""Jagged nested tensors, refused in words in inference mode too.

There no autograd kernel sees them before their own dispatch, which would only name the operator.
"""

from __future__ import annotations

from typing import Any

import torch

_OPERATORS = ("lambda_gelu", "lambda_gelu_backward")


def _refuse(_class: Any, func: Any, _types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
    names = (argument.name for argument in func._schema.arguments)
    given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
    nested = [name for name, value in given.items() if isinstance(value, torch.Tensor) and value.is_nested]
    raise TypeError(f"{' and '.join(nested)} must be a dense tensor, got a nested tensor")


def register() -> None:
    """Once. Where torch has moved the class, its own error remains."""
    try:
        from torch.nested._internal.nested_tensor import NestedTensor  # noqa: PLC0415 - private, may have moved
    except ImportError:
        return
    for name in _OPERATORS:
        torch.library.register_torch_dispatch(f"lambda_gelu::{name}", NestedTensor, _refuse)
