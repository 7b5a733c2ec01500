"""From GELU to λ-GELU."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from ._calls import FunctionalCall, FunctionalGELU, ModuleCall, first_argument, record_calls
from ._checks import check_choice
from ._dtypes import precise_dtype
from ._gelu_classes import distance_from_gelu, is_candidate, looks_like_gelu
from ._table import as_lists, format_table
from .modules import LambdaGELU
from .sites import Slot, _site_name, find_slots, refuse_compiled, refuse_sharded, refuse_synchronized, unwrapped

# max over x and λ of λ² |∂f/∂λ|, at x = √2 / λ
_STEEPEST = 2 / (math.e * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class ConvertedSite:
    """One place where :func:`convert_` put a :class:`LambdaGELU`.

    Attributes:
        name: the place in the model.
        replaced: what was there, for example ``GELU(approximate='tanh')`` or ``NewGELUActivation()``; the function
            ``gelu`` where an attribute held that.
        num_parameters: number of λ.
        error: max over x of |f - what was there|, a bound in exact arithmetic: ``0.2936 (1 - 1/λ)``, and 0.00047 more
            where that was the tanh approximation.
        calls: how often `example_inputs` ran it, None where there were none. Above 1, uses that might have had a λ each
            share one; at 0, its λ gets no gradient, which DistributedDataParallel does not accept.
        called_from: the lines that ran it, as ``file.py:12``, in order of the first call; empty without
            `example_inputs`.
        shared_with: other places that held the very same module. Each place has its own λ now.
    """

    name: str
    replaced: str
    num_parameters: int
    error: float
    calls: int | None
    called_from: tuple[str, ...]
    shared_with: tuple[str, ...]


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`convert_` did.

    Attributes:
        sites: what was replaced.
        skipped: modules of some GELU class that were left alone: why, by name.
        functional_calls: GELU that stays in the model, since a forward computes it without a module; None where there
            were no `example_inputs` to find it with.
        init_hardness: λ that every site starts from.
    """

    sites: tuple[ConvertedSite, ...]
    skipped: dict[str, str]
    functional_calls: tuple[FunctionalCall, ...] | None
    init_hardness: float

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return asdict(self, dict_factory=as_lists)

    def __str__(self) -> str:
        rows = [
            (
                site.name,
                site.replaced,
                str(site.num_parameters),
                f"{site.error:.2g}",
                "?" if site.calls is None else str(site.calls),
                ", ".join(site.shared_with) or "-",
            )
            for site in self.sites
        ]
        lines = [
            f"{len(self.sites)} sites are λ-GELU now, λ = {self.init_hardness:g}",
            format_table(("site", "replaced", "number of λ", "error", "calls", "shared module with"), rows),
        ]
        lines += [
            f"one λ for {site.calls} calls: {site.name}, from {', '.join(site.called_from)}"
            for site in self.sites
            if site.calls is not None and site.calls > 1
        ]
        lines += [f"never called: {site.name}" for site in self.sites if site.calls == 0]
        lines += [f"left alone: {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"still GELU: {call}" for call in self.functional_calls or ()]
        return "\n".join(lines)


def convert_(
    model: nn.Module,
    *,
    init_hardness: float = 1.01,
    per: str = "layer",
    example_inputs: Any = None,
    channel_dim: int = 1,
    temperature: float = 0.1,
    gelu_classes: Iterable[type[nn.Module]] = (),
) -> ConversionReport:
    """Replaces every GELU of a model, exact or tanh, by a :class:`LambdaGELU`, in place.

    What is known as GELU: ``nn.GELU``; those of transformers (``GELUActivation``, ``NewGELUActivation``,
    ``FastGELUActivation``, ``AccurateGELUActivation``, ``GELUTanh``); those of timm (``GELU``, ``GELUTanh``); and the
    function ``F.gelu`` as an attribute of a module, as in ``nn.TransformerEncoderLayer(activation="gelu")``. What its
    class does not settle is compared with GELU on a grid, in float64, and left alone where it differs: QuickGELU, x
    σ(1.702x), is off by 0.02.

    λ = 1 is GELU but lies at s = -∞, where nothing is learned, so a site starts slightly above it: |f(x; λ) - GELU(x)|
    <= 0.2936 (1 - 1/λ) for every x, that is 0.0030 for the default λ = 1.01 (ours; the tanh approximation itself is off
    by 0.0005). A larger λ learns faster at first: dλ/ds = (1 - exp(1 - λ)) / τ.

    Hooks of a replaced module go with it. A new site has device and dtype of the first parameter of its parent, else of
    the model; float32 beside 16 bits, in which λ could not be learned. ``F.gelu`` called inside a forward cannot be
    replaced; with `example_inputs` it is found and named, without them it cannot be seen. A formula written out in a
    forward is never seen.

    Args:
        model: a model that contains GELU modules.
        init_hardness: λ at the start, finite and above 1. Default 1.01.
        per: ``"layer"``: one λ per site (the paper's); ``"channel"``: one for every index of dimension `channel_dim`,
            whose size is learned from `example_inputs`.
        example_inputs: what the model is called with, once, in eval mode: a tensor, a tuple of positional or a mapping
            of keyword arguments. Needed for ``per="channel"``; otherwise it adds to the report how often and from where
            each site is called, and the functional calls.
        channel_dim: see :class:`LambdaGELU`. Default 1 (N, C, ...); -1 for channels last, as in transformers.
        temperature: τ. Default 0.1 (ours).
        gelu_classes: further classes of modules that compute GELU, checked on the grid as well.

    Returns:
        ConversionReport: what was replaced, and what was not; prints as a table.

    Raises:
        ValueError: where nothing matched, where `model` itself is a GELU (nothing holds it in which it could be
            replaced), where torch.compile wraps a GELU by itself, where the model is in DistributedDataParallel or
            spread over ranks already, where a module of `gelu_classes` is not GELU, where `example_inputs` reach a GELU
            that is called with more than one tensor, and where ``per="channel"`` finds no or no single number of
            channels. Nothing is changed.
        TypeError: for an `init_hardness` that is no float, or `gelu_classes` that are no classes. Nothing is changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_choice("per", per, ("layer", "channel"))
    if isinstance(init_hardness, bool) or not isinstance(init_hardness, (int, float)):
        raise TypeError(f"init_hardness must be a float, got {type(init_hardness).__name__}")
    if per == "channel" and example_inputs is None:
        raise ValueError("per='channel' needs example_inputs to learn the numbers of channels")
    gelu_classes = _checked_classes(gelu_classes)
    if is_candidate(unwrapped(model), gelu_classes):
        kind = type(unwrapped(model)).__name__
        raise ValueError(f"the model itself is a {kind} and cannot be replaced in place: write LambdaGELU() instead")
    with _functions_as_modules(model, gelu_classes) as functions:
        slots, errors, skipped = _gelu_slots(model, gelu_classes)
        refuse_compiled(slots)
        refuse_synchronized(model, slots, "convert first, then wrap")
        refuse_sharded(model)
        fx = sys.modules.get("torch.fx")
        if not slots and fx is not None and isinstance(unwrapped(model), fx.GraphModule):
            raise ValueError("the model is a graph of functions, as torch.export writes it: convert first, then export")
        observed = _observe(model, slots, skipped, gelu_classes, example_inputs)
        if not slots:
            raise ValueError(_nothing_matched(model, skipped, observed))
        counts = {slot.name: 1 for slot in slots} if per == "layer" else _channels(observed, channel_dim)
        replacements = []
        for slot in slots:
            reference = next(slot.parent.parameters(), next(model.parameters(), torch.empty(0)))
            replacements.append(
                LambdaGELU(
                    counts[slot.name],
                    init_hardness=init_hardness,
                    temperature=temperature,
                    channel_dim=channel_dim,
                    device=reference.device,
                    dtype=precise_dtype(reference.dtype) if reference.is_floating_point() else None,
                ).train(slot.module.training)
            )
        for slot, replacement in zip(slots, replacements, strict=True):
            slot.put(replacement)
    _disable_nested_tensors(model)
    sites = tuple(
        ConvertedSite(
            name=slot.name,
            replaced=functions.get((slot.parent, slot.key)) or repr(slot.module),
            num_parameters=counts[slot.name],
            error=errors[slot.module] + _change_from_gelu(replacement, init_hardness),
            calls=None if observed is None else len(observed.calls[slot.name]),
            called_from=() if observed is None else observed.lines(slot.name),
            shared_with=tuple(other.name for other in slots if other.module is slot.module and other is not slot),
        )
        for slot, replacement in zip(slots, replacements, strict=True)
    )
    return ConversionReport(
        sites=sites,
        skipped={slot.name: reason for slot, reason in skipped},
        functional_calls=None if observed is None else observed.functional,
        init_hardness=float(init_hardness),
    )


def _checked_classes(classes: Iterable[type[nn.Module]]) -> tuple[type[nn.Module], ...]:
    if isinstance(classes, type):
        raise TypeError(f"gelu_classes must be a list of classes, got {classes.__name__} itself")
    classes = tuple(classes)
    for kind in classes:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"gelu_classes must hold subclasses of torch.nn.Module, got {kind!r}")
    return classes


def _change_from_gelu(site: LambdaGELU, init_hardness: float) -> float:
    """A bound on |f(x; λ) - GELU(x)|."""
    hardness = init_hardness if site.raw_hardness.is_meta else site.hardness.max().item()
    return _STEEPEST * (1 - 1 / hardness)


def _disable_nested_tensors(model: nn.Module) -> None:
    """torch.nn.TransformerEncoder packs padded batches into nested tensors for the fused path of its layers only."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor &= all(getattr(layer, "activation_relu_or_gelu", 0) for layer in module.layers)


# --- what there is to replace ----------------------------------------------------------------------------------------


def _gelu_slots(
    model: nn.Module, gelu_classes: tuple[type[nn.Module], ...]
) -> tuple[list[Slot[nn.Module]], dict[nn.Module, float], list[tuple[Slot[nn.Module], str]]]:
    """Where GELU modules lie; how far each is from GELU; and those that are left alone, with the reason."""
    slots, errors, skipped = [], {}, []
    for slot in find_slots(model, nn.Module):
        if is_candidate(slot.module, gelu_classes):
            distance = distance_from_gelu(slot.module, gelu_classes)
            if isinstance(distance, float):
                slots.append(slot)
                errors[slot.module] = distance
                continue
            if isinstance(slot.module, gelu_classes):
                raise ValueError(f"gelu_classes: {distance} ({slot.name})")
            skipped.append((slot, distance))
        elif isinstance(slot.module, torch.jit.ScriptModule):
            if "gelu" in slot.module.original_name.lower():
                reason = f"{slot.module.original_name} is TorchScript, which cannot change: convert first, then script"
                skipped.append((slot, reason))
        elif not isinstance(slot.module, LambdaGELU) and looks_like_gelu(slot.module):
            kind = type(slot.module).__name__
            skipped.append((slot, f"{kind} is not known; where it is GELU, gelu_classes=[{kind}] converts it"))
    return slots, errors, skipped


@contextmanager
def _functions_as_modules(
    model: nn.Module, gelu_classes: tuple[type[nn.Module], ...]
) -> Iterator[dict[tuple[nn.Module, str], str]]:
    """Makes ``F.gelu`` that is an attribute of a module an ``nn.GELU``; on an exception it is a function again.

    Yields:
        dict: what was there, by parent and attribute.
    """
    held = [
        (parent, key, value)
        for parent in unwrapped(model).modules()
        if not (is_candidate(parent, gelu_classes) or looks_like_gelu(parent))
        for key, value in vars(parent).items()
        if _approximation(value) is not None
    ]
    attributes = [dict(vars(parent)) for parent, _, _ in held]
    texts = {}
    for parent, key, value in held:
        gelu = nn.GELU(cast(str, _approximation(value))).train(parent.training)
        del vars(parent)[key]
        parent._modules[key] = gelu
        texts[parent, key] = "gelu" if value is F.gelu else f"gelu(approximate={gelu.approximate!r})"
    try:
        yield texts
    except BaseException:
        for (parent, key, _), before in zip(held, attributes, strict=True):
            del parent._modules[key]
            vars(parent).update(before)
        raise


def _approximation(value: object) -> str | None:
    """The argument `approximate` of a function that is ``F.gelu``; None for another."""
    if value is F.gelu:
        return "none"
    if isinstance(value, functools.partial) and value.func is F.gelu and not value.args:
        keywords = {"approximate": "none", **value.keywords}
        return keywords["approximate"] if len(keywords) == 1 else None
    return None


# --- what a run shows ------------------------------------------------------------------------------------------------


class _Probe(nn.Module):
    """Computes what it stands for; a class of its own, since torch has faster paths around ``nn.GELU``."""

    def __init__(self, name: str, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._name = name
        self._function = forward

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(args) + len(kwargs) != 1 or not kwargs.keys() <= {"input"}:
            given = ", ".join((*("..." for _ in args), *(f"{name}=..." for name in kwargs)))
            raise ValueError(f"{self._name} is called with ({given}), but a LambdaGELU takes one tensor, `input`")
        return self._function(first_argument(args, kwargs))


@dataclass(frozen=True)
class _Observed:
    calls: dict[str, list[ModuleCall]]  # by slot
    functional: tuple[FunctionalCall, ...]

    def lines(self, name: str) -> tuple[str, ...]:
        """Where a slot is called from, each line once."""
        return tuple(dict.fromkeys(call.location for call in self.calls[name]))


def _observe(
    model: nn.Module,
    slots: list[Slot[nn.Module]],
    skipped: list[tuple[Slot[nn.Module], str]],
    gelu_classes: tuple[type[nn.Module], ...],
    example_inputs: Any,
) -> _Observed | None:
    """Runs the model once, where there is something to run it with."""
    if example_inputs is None:
        return None
    # A module of its own in every slot, so that one that is shared by several tells them apart.
    probes: dict[nn.Module, Slot[nn.Module]] = {_Probe(slot.name, slot.module.forward): slot for slot in slots}
    try:
        for probe, slot in probes.items():
            slot.put(probe)
        functional = FunctionalGELU(
            names={module: _site_name(name) for name, module in unwrapped(model).named_modules()},
            known={*probes, *(slot.module for slot, _ in skipped)},
            is_gelu=lambda module: (
                is_candidate(module, gelu_classes) and isinstance(distance_from_gelu(module, gelu_classes), float)
            ),
        )
        with functional.looking():
            recorded = record_calls(model, probes, example_inputs)
    finally:
        for slot in slots:
            slot.put(slot.module)
    calls: dict[str, list[ModuleCall]] = {slot.name: [] for slot in slots}
    for call in recorded:
        calls[probes[call.module].name].append(call)
    return _Observed(calls, functional.calls(unwrapped(model)))


def _channels(observed: _Observed | None, channel_dim: int) -> dict[str, int]:
    """The number of channels by slot."""
    counts = {}
    for name, calls in (observed.calls if observed else {}).items():
        found = set()
        for call in calls:
            shape = call.argument.shape
            if not -len(shape) <= channel_dim < len(shape):
                raise ValueError(f"channel_dim {channel_dim} is out of range at {name}, input {tuple(shape)}")
            found.add(shape[channel_dim])
        if len(found) != 1:
            raise ValueError(f"{name} must see one number of channels in example_inputs, got {sorted(found)}")
        (counts[name],) = found
    return counts


def _nothing_matched(model: nn.Module, skipped: list[tuple[Slot[nn.Module], str]], observed: _Observed | None) -> str:
    message = f"{type(model).__name__} has no GELU module"
    done = sum(isinstance(module, LambdaGELU) for module in model.modules())
    if done:
        message += f" beside {done} LambdaGELU"
    if observed is not None and not observed.functional:
        message += ", nor a call of F.gelu"
    for slot, reason in skipped:
        message += f"; {slot.name}: {reason}"
    if observed is None:
        return message + "; F.gelu called inside a forward is found only with example_inputs"
    for call in observed.functional:
        message += f"; {call}: make it a module, self.act = nn.GELU(), and call that"
    return message
