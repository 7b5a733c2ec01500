"""From GELU to λ-GELU, and from λ-GELU to ReLU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from . import _C
from ._calls import record_calls
from ._table import format_table
from .modules import LambdaGELU, precise_dtype
from .sites import Slot, find_sites, find_slots, refuse_compiled, unwrapped


def _plain(report: Any) -> dict[str, Any]:
    """A report as JSON has it: with lists for its tuples."""
    return asdict(report, dict_factory=lambda items: {k: list(v) if isinstance(v, tuple) else v for k, v in items})


# --- GELU -> λ-GELU --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvertedSite:
    """One place where :func:`convert_` put a :class:`LambdaGELU`.

    Attributes:
        name: the place in the model.
        replaced: what was there, for example ``GELU(approximate='tanh')``; a subclass of GELU under its own name.
        num_parameters: number of λ.
        calls: how often `example_inputs` ran it, None where there were none. Above 1, uses that might have had a λ each
            share one.
        shared_with: other places that held the very same module. Each place has its own λ now.
    """

    name: str
    replaced: str
    num_parameters: int
    calls: int | None
    shared_with: tuple[str, ...]


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`convert_` did.

    Attributes:
        sites: what was replaced.
        skipped: name and class of modules derived from ``nn.GELU`` that were left alone, since their own forward may
            compute something else.
        init_hardness: λ that every site starts from.
    """

    sites: tuple[ConvertedSite, ...]
    skipped: dict[str, str]
    init_hardness: float

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return _plain(self)

    def __str__(self) -> str:
        rows = [
            (
                site.name,
                site.replaced,
                str(site.num_parameters),
                "?" if site.calls is None else str(site.calls),
                ", ".join(site.shared_with) or "-",
            )
            for site in self.sites
        ]
        lines = [
            f"{len(self.sites)} sites are λ-GELU now, λ = {self.init_hardness:g}",
            format_table(("site", "replaced", "number of λ", "calls", "shared module with"), rows),
        ]
        lines += [f"left alone: {name} ({kind} has a forward of its own)" for name, kind in self.skipped.items()]
        return "\n".join(lines)


def convert_(
    model: nn.Module,
    *,
    init_hardness: float = 1.01,
    per: str = "layer",
    example_inputs: Any = None,
    channel_dim: int = 1,
    temperature: float = 0.1,
) -> ConversionReport:
    """Replaces every ``nn.GELU`` of a model, exact or tanh, by a :class:`LambdaGELU`, in place.

    λ = 1 is GELU but lies at s = -∞, where nothing is learned, so a site starts slightly above it: |f(x; λ) - GELU(x)|
    <= 0.2936 (1 - 1/λ) for every x, that is 0.0030 for the default λ = 1.01 (ours; the tanh approximation itself is off
    by 0.0005). A larger λ learns faster at first: dλ/ds = (1 - exp(1 - λ)) / τ.

    Only ``nn.GELU`` and its subclasses are found: neither ``F.gelu`` calls inside a forward, nor classes that do not
    derive from it, such as transformers' own (``GELUActivation``, ``NewGELUActivation``). Hooks of a replaced module go
    with it. A new site has device and dtype of the first parameter of its parent, else of the model; float32 beside 16
    bits, in which λ could not be learned.

    Args:
        model: a model that contains ``nn.GELU``.
        init_hardness: λ at the start, finite and above 1. Default 1.01.
        per: ``"layer"``: one λ per site (the paper's); ``"channel"``: one for every index of dimension `channel_dim`,
            whose size is learned from `example_inputs`.
        example_inputs: what the model is called with, once, in eval mode: a tensor, a tuple of positional or a mapping
            of keyword arguments. Needed for ``per="channel"``; otherwise it only adds the number of calls to the
            report.
        channel_dim: see :class:`LambdaGELU`. Default 1 (N, C, ...); -1 for channels last, as in transformers.
        temperature: τ. Default 0.1 (ours).

    Returns:
        ConversionReport: what was replaced; prints as a table.

    Raises:
        ValueError: where nothing matched, where `model` itself is an ``nn.GELU`` (nothing holds it in which it could be
            replaced), where torch.compile wraps an ``nn.GELU`` by itself, and where ``per="channel"`` finds no or no
            single number of channels. Nothing is changed.
        TypeError: for an `init_hardness` that is no float. Nothing is changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(unwrapped(model), nn.GELU):
        raise ValueError("the model itself is a GELU and cannot be replaced in place: write LambdaGELU() instead")
    if per not in ("layer", "channel"):
        raise ValueError(f"per must be 'layer' or 'channel', got {per!r}")
    if isinstance(init_hardness, bool) or not isinstance(init_hardness, (int, float)):
        raise TypeError(f"init_hardness must be a float, got {type(init_hardness).__name__}")
    if per == "channel" and example_inputs is None:
        raise ValueError("per='channel' needs example_inputs to learn the numbers of channels")
    slots, skipped = _gelu_slots(model)
    if not slots:
        left = f" ({', '.join(skipped)} have a forward of their own)" if skipped else ""
        raise ValueError(
            f"{type(model).__name__} has no nn.GELU module{left}; F.gelu calls and classes that do not derive "
            "from nn.GELU, such as transformers' GELUActivation, cannot be replaced"
        )
    refuse_compiled(slots)
    counts, calls = _measure(model, slots, example_inputs, channel_dim if per == "channel" else None)
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
            replaced=repr(slot.module),
            num_parameters=counts[slot.name],
            calls=None if calls is None else calls[slot.name],
            shared_with=tuple(other.name for other in slots if other.module is slot.module and other is not slot),
        )
        for slot in slots
    )
    return ConversionReport(sites=sites, skipped=skipped, init_hardness=float(init_hardness))


def _disable_nested_tensors(model: nn.Module) -> None:
    """torch.nn.TransformerEncoder packs padded batches into nested tensors for the fused path of its layers only."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor &= all(getattr(layer, "activation_relu_or_gelu", 0) for layer in module.layers)


def _gelu_slots(model: nn.Module) -> tuple[list[Slot[nn.GELU]], dict[str, str]]:
    """Where GELU modules lie, and the derived ones that are left alone."""
    slots, skipped = [], {}
    for slot in find_slots(model, nn.GELU):
        if type(slot.module).forward is nn.GELU.forward:
            slots.append(slot)
        else:
            skipped[slot.name] = type(slot.module).__name__
    return slots, skipped


def _measure(
    model: nn.Module, slots: list[Slot[nn.GELU]], example_inputs: Any, channel_dim: int | None
) -> tuple[dict[str, int], dict[str, int] | None]:
    """Number of λ and of calls by slot."""
    counts = {slot.name: 1 for slot in slots}
    if example_inputs is None:
        return counts, None
    # A module of its own in every slot, so that one that is shared by several tells them apart.
    probes: dict[nn.Module, Slot[nn.GELU]] = {nn.GELU(slot.module.approximate): slot for slot in slots}
    try:
        for probe, slot in probes.items():
            slot.put(probe)
        recorded = record_calls(model, probes, example_inputs)
    finally:
        for slot in slots:
            slot.put(slot.module)
    calls = {slot.name: 0 for slot in slots}
    channels: dict[str, set[int]] = {slot.name: set() for slot in slots}
    for module, argument in recorded:
        name = probes[module].name
        calls[name] += 1
        if channel_dim is not None:
            if not -argument.dim() <= channel_dim < argument.dim():
                raise ValueError(f"channel_dim {channel_dim} is out of range at {name}, input {tuple(argument.shape)}")
            channels[name].add(argument.size(channel_dim))
    if channel_dim is not None:
        for name, found in channels.items():
            if len(found) != 1:
                raise ValueError(f"{name} must see one number of channels in example_inputs, got {sorted(found)}")
            (counts[name],) = found
    return counts, calls


# --- λ-GELU -> ReLU --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SubstitutedSite:
    """One site that :func:`to_relu_` made a ReLU.

    Attributes:
        name: its first name in the model.
        also_at: further places of the same module.
        hardness_min, hardness_mean, hardness_max: over its λ.
        gate_gap: sqrt(2/π) / hardness_min, the largest L1 distance of its gates from ReLU's step.
    """

    name: str
    also_at: tuple[str, ...]
    hardness_min: float
    hardness_mean: float
    hardness_max: float
    gate_gap: float


@dataclass(frozen=True)
class SubstitutionReport:
    """What :func:`to_relu_` did.

    What it cost depends on κ = λσ, and the standard deviations σ of the pre-activations are not known here: compare the
    validation metric under :func:`relu_substituted` with the plain one.
    """

    sites: tuple[SubstitutedSite, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return _plain(self)

    def __str__(self) -> str:
        rows = [
            (
                ", ".join((site.name, *site.also_at)),
                f"{site.hardness_min:.4g}",
                f"{site.hardness_mean:.4g}",
                f"{site.hardness_max:.4g}",
                f"{site.gate_gap:.4g}",
            )
            for site in self.sites
        ]
        return f"{len(self.sites)} sites are ReLU now\n" + format_table(
            ("site", "λ min", "λ mean", "λ max", "gate gap"), rows
        )


def to_relu_(model: nn.Module) -> SubstitutionReport:
    """Replaces every :class:`LambdaGELU` of a model by ``nn.ReLU``, in place, without touching a weight.

    Hooks of a replaced module go with it, and an optimizer keeps its λ until it is made anew.

    Returns:
        SubstitutionReport: what was replaced; prints as a table.

    Raises:
        ValueError: for a model without a site, where `model` itself is one (nothing holds it in which it could be
            replaced), and for a site that torch.compile wraps by itself. Nothing is changed.
    """
    find_sites(model)
    if isinstance(unwrapped(model), LambdaGELU):
        raise ValueError("the model itself is a LambdaGELU and cannot be replaced in place: write nn.ReLU() instead")
    slots = find_slots(model, LambdaGELU)
    refuse_compiled(slots)
    places: dict[LambdaGELU, list[Slot[LambdaGELU]]] = {}
    for slot in slots:
        places.setdefault(slot.module, []).append(slot)
    report = SubstitutionReport(tuple(_substituted_site(slots) for slots in places.values()))
    for module, its_slots in places.items():
        relu = nn.ReLU().train(module.training)
        for slot in its_slots:
            slot.put(relu)
    return report


def _substituted_site(slots: list[Slot[LambdaGELU]]) -> SubstitutedSite:
    hardness = slots[0].module.hardness.tolist()
    return SubstitutedSite(
        name=slots[0].name,
        also_at=tuple(slot.name for slot in slots[1:]),
        hardness_min=min(hardness),
        hardness_mean=sum(hardness) / len(hardness),
        hardness_max=max(hardness),
        gate_gap=_C.gate_gap(min(hardness)),
    )


@contextmanager
def relu_substituted(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context every :class:`LambdaGELU` of the model computes ReLU, as after :func:`to_relu_`.

    The sites compute λ-GELU again afterwards, also after an exception; contexts nest. The switch is in the model: other
    threads that run the same model meanwhile see it too. Copies and pickles made inside the context are not
    substituted.

    Example::

        >>> with lambda_gelu.relu_substituted(model):
        ...     accuracy_as_relu = evaluate(model)

    Raises:
        ValueError: for a model without a site.
    """
    sites = list(find_sites(model).values())
    for site in sites:
        site._substituted += 1
    try:
        yield model
    finally:
        for site in sites:
            site._substituted -= 1
