"""Which layers of a model consume what its layers and sites compute.

Two ways to the same :class:`Dataflow`: ``torch.fx`` traces a model without inputs, for all of them, but sees no shapes
and ends where the forward asks for values; one run on example inputs, in which every operation is seen, sees shapes and
the branches that were taken. Both know linear, convolution and norm layers and the sites as wholes, and follow their
outputs through operations that only move numbers or pool those of one channel.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..sites import unwrapped
from .graph import (
    Call,
    Dataflow,
    DataflowError,
    Moved,
    Unknown,
    Value,
    channel_positions,
    channels_along,
    ends_of,
)

__all__ = [
    "Call",
    "Dataflow",
    "DataflowError",
    "Moved",
    "Unknown",
    "Value",
    "channel_positions",
    "channels_along",
    "ends_of",
    "trace",
]


def trace(model: nn.Module, example_inputs: Any = None) -> Dataflow:
    """What consumes what: in a run on `example_inputs`, or, without them, as ``torch.fx`` sees it.

    In eval mode; the model is left as it was.

    Raises:
        DataflowError: where torch.fx cannot trace the model, and where a run could not be followed.
    """
    if example_inputs is None:
        from .symbolic import trace_symbolically  # noqa: PLC0415 - few need it

        return trace_symbolically(unwrapped(model))
    try:
        from .run import trace_run  # noqa: PLC0415 - it needs a part of torch that may move
    except ImportError as error:
        raise DataflowError(f"this PyTorch cannot show the operations of a run ({error})") from error
    return trace_run(model, example_inputs)
