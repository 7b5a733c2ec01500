"""What torch.compile makes of the activation: a formula that it fuses with its neighbours, or a call of our kernel.

Inductor has to know the formulas (rules/decomposition.py) before it compiles the first graph, but importing it takes
longer than importing torch. So our Python functions call :func:`prepare` while they are traced, and not at import.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .rules import decomposition

_MODES = ("auto", "fuse", "opaque")

# What "auto" rests on (docs/compile.md): on these devices, inputs of so many elements (from, below) go to the kernel.
# Smaller ones cost less without a call; larger ones are bound by memory, where a fused neighbour saves a pass.
KERNEL_ELEMENTS = {"cpu": (1 << 15, 1 << 23)}

_mode = "auto"

_has_exporting_flag = hasattr(torch.compiler, "_is_exporting_flag")


def compile_mode() -> str:
    """What :func:`set_compile_mode` has set; ``"auto"`` at the start."""
    return _mode


def set_compile_mode(mode: str) -> None:
    """Says what ``torch.compile`` makes of the activation, in this process, from now on.

    Code that has been compiled in another mode is dropped (``torch._dynamo.reset()``), and code of the modes is kept
    apart in the caches on disk (``torch.compiler.config.cache_key_tag``).

    Args:
        mode: ``"fuse"``: formulas that Inductor fuses with their neighbours; float32 loses at most 3e-5 of the
            value in the negative tail, and the bits of dλ depend on the number of threads. ``"opaque"``: a call of the
            kernels that run without a compiler. ``"auto"`` (the default): one or the other by device and size, as
            measured; the choice may differ between versions of this package.

    Raises:
        ValueError: for another mode.
        TypeError: where mode is not a str.
        RuntimeError: for ``"fuse"`` where this PyTorch has no table of decompositions as we know it. Nothing is
            changed. (``"auto"`` means ``"opaque"`` there.)

    Note:
        Not for one thread while another compiles: that graph may be taken from either mode.

        The default mode takes effect for graphs that :class:`LambdaGELU` and our functions are traced into. Programs
        that only call ``torch.ops.lambda_gelu`` themselves get the kernel until they call this.
    """
    global _mode
    if not isinstance(mode, str):
        raise TypeError(f"mode must be a str, got {type(mode).__name__}")
    if mode not in _MODES:
        raise ValueError(f'mode must be "auto", "fuse" or "opaque", got {mode!r}')
    if not _apply(mode) and mode == "fuse":
        raise RuntimeError(
            f'mode "fuse" is not available: torch {torch.__version__} has no table of decompositions that '
            "lambda_gelu knows; the kernel is called instead"
        )
    changed, _mode = mode != _mode, mode
    if changed and "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


def prepare() -> bool:
    """Puts the mode into effect; Dynamo runs this once for each graph that it traces, and takes the result as given."""
    if torch.compiler.is_dynamo_compiling():
        return False  # traced, because the mark below has lost its meaning: the kernel is called
    return _apply(_mode)


prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as torch.compiler.assume_constant_result would,
# which imports Dynamo


def is_exporting() -> bool:
    """Whether torch.export is tracing this, and not torch.compile."""
    # Not torch.compiler.is_exporting() where the flag behind it is there: torch 2.11 traces that as True in any graph.
    return torch.compiler._is_exporting_flag if _has_exporting_flag else torch.compiler.is_exporting()


def _apply(mode: str) -> bool:
    """Tells Inductor about the formulas, or makes it forget them; whether it knows them then."""
    if mode == "opaque" and "torch._inductor.decomposition" not in sys.modules:
        known = False
    else:
        try:
            known = _tell_inductor(mode != "opaque")
        except Exception:  # private to torch: whatever a later one raises, the kernel computes the same
            known = False
    _tag_caches(mode if known else "opaque")
    return known


def _tell_inductor(fuse: bool) -> bool:
    from torch._inductor import decomposition as inductor  # noqa: PLC0415 - costs more than importing torch

    tables = (inductor.decompositions, inductor.select_decomp_table())  # the second may be a copy of the first, kept
    for table in tables:
        for op, formula in _FORMULAS.items():
            if fuse:
                table[op] = formula
            else:
                table.pop(op, None)
    return fuse and all(op in inductor.select_decomp_table() for op in _FORMULAS)


def _tag_caches(mode: str) -> None:
    # The caches on disk are keyed by the graph before it is decomposed: without a tag they would return old code.
    config = torch.compiler.config
    tag = "" if mode == "opaque" else f"|lambda_gelu-{mode}-{decomposition.VERSION}"
    if mode == "auto":
        tag += "".join(f"-{device}-{low}-{high}" for device, (low, high) in KERNEL_ELEMENTS.items())
    others = re.sub(r"\|lambda_gelu-[^|]*", "", config.cache_key_tag)
    if config.cache_key_tag != others + tag:
        config.cache_key_tag = others + tag


def _decomposed(op: Any, formula: Callable[..., Any]) -> Callable[..., Any]:
    def decompose(*args: Any, **kwargs: Any) -> Any:
        if _mode == "auto" and _calls_kernel(args[0]) and _has_fallback(op):
            return NotImplemented
        return formula(*args, **kwargs)

    return decompose


_FORMULAS = {
    decomposition.FORWARD: _decomposed(decomposition.FORWARD, decomposition.forward),
    decomposition.BACKWARD: _decomposed(decomposition.BACKWARD, decomposition.backward),
}


def _calls_kernel(operand: Tensor) -> bool:
    if operand.device.type not in KERNEL_ELEMENTS:
        return False
    count: Any = operand.numel()
    if not isinstance(count, int):  # a symbol: what it was in the example, without a guard on it
        count = getattr(getattr(count, "node", None), "hint", None)
        if not isinstance(count, int):
            return True
    low, high = KERNEL_ELEMENTS[operand.device.type]
    return low <= count < high


def _has_fallback(op: Any) -> bool:
    """Inductor by itself refuses to call an operator that has a decomposition."""
    try:
        from torch._inductor import lowering  # noqa: PLC0415

        if op not in lowering.lowerings:
            lowering.make_fallback(op, warn=False, override_decomp=True)
    except Exception:  # private to torch: whatever a later one raises, the formulas compute the same
        return False
    return True
