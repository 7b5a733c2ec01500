"""ONNX: how :func:`torch.onnx.export` writes the op down."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ._require import require

_GELU_OPSET = 20  # the first with Gelu


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    r"""The λ-GELU op for :func:`torch.onnx.export`, which knows no operator outside of PyTorch by itself.

    From opset 20 on (torch's default) :math:`f(x; \lambda) = \mathrm{Gelu}(\lambda x) / \lambda`, which runtimes know
    and fuse; before, :math:`x \, (1 + \mathrm{Erf}(\lambda x / \sqrt 2)) / 2`. :math:`\lambda = 1 + \mathrm{softplus}(s
    / \tau)` is computed in float64: by the exporter's optimizer, so that λ is a constant of the exported model, or by
    the runtime where s is an input or that optimizer leaves it alone (``optimize=False``, or more than some thousand
    channels).
    Computed in float32 for float16 and bfloat16 input, as our op does.

    Both forms lose the relative accuracy of the negative tail, as 1 + Erf cancels (docs/export.md has the figures).

    Returns:
        dict: for the argument `custom_translation_table`.

    Raises:
        ImportError: without onnxscript, naming the extra that installs it.

    Example::

        >>> torch.onnx.export(
        ...     model, (x,), "model.onnx", dynamo=True,
        ...     custom_translation_table=lambda_gelu.integrations.onnx.translation_table(),
        ... )
    """
    require("onnx", "onnx")
    require("onnxscript", "onnx")
    return {torch.ops.lambda_gelu.lambda_gelu.default: _lambda_gelu}


def _lambda_gelu(input: Any, hardness: Any, channel_dim: int = 1, temperature: float | None = None) -> Any:
    """Called by the exporter with values of the graph for the tensors; the operators that it calls are recorded."""
    from onnxscript import evaluator, ir, opset20  # noqa: PLC0415 - an extra

    op = getattr(evaluator.default(), "opset", opset20)  # that of the model being exported
    computed = ir.DataType.DOUBLE if input.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT

    def constant(value: Any, dtype: Any) -> Any:
        return op.Constant(value=ir.tensor(value, dtype=dtype))

    rank, channels = len(input.shape), hardness.shape[0]
    if temperature is not None:
        # Softplus as max(z, 0) + log(1 + exp(-|z|)): onnxruntime has none in float64.
        one = constant(1.0, ir.DataType.DOUBLE)
        z = op.Div(op.Cast(hardness, to=ir.DataType.DOUBLE), constant(temperature, ir.DataType.DOUBLE))
        softplus = op.Add(op.Relu(z), op.Log(op.Add(one, op.Exp(op.Neg(op.Abs(z))))))
        hardness = op.Add(one, softplus)
    hardness = op.Cast(hardness, to=computed)
    if rank == 0 or channels != 1:
        shape = [1] * rank
        if rank:
            shape[channel_dim] = -1
        hardness = op.Reshape(hardness, constant(shape, ir.DataType.INT64))
    x = op.Cast(input, to=computed)
    if op.version >= _GELU_OPSET:
        y = op.Div(op.Gelu(op.Mul(x, hardness)), hardness)
    else:
        erf = op.Erf(op.Mul(x, op.Mul(hardness, constant(math.sqrt(0.5), computed))))
        y = op.Mul(op.Mul(x, constant(0.5, computed)), op.Add(erf, constant(1.0, computed)))
    return op.Cast(y, to=input.dtype)
