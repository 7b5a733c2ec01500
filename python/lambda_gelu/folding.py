"""λ into the neighbouring layers, exactly: a plain GELU network remains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._layers import factors_in, factors_out, in_channels, out_channels, out_dim, why_no_factor_in, why_no_factor_out
from ._table import as_lists, format_table
from ._tracing import Call, Dataflow, DataflowError, Value, channel_positions, ends_of, trace
from .modules import LambdaGELU
from .sites import refuse_spread, replaceable_sites
from .successors import channels_of, only_call, only_calls, refuse_shared


@dataclass(frozen=True)
class FoldedSite:
    """One site that :func:`fold_hardness_` made a GELU.

    Attributes:
        name: its first name in the model.
        also_at: further places of the same module.
        hardness_min, hardness_max: over its λ.
        predecessor: the layer whose outputs are λ times as large now.
        successors: the layers whose weights are divided by λ now.
    """

    name: str
    also_at: tuple[str, ...]
    hardness_min: float
    hardness_max: float
    predecessor: str
    successors: tuple[str, ...]


@dataclass(frozen=True)
class FoldingReport:
    """What :func:`fold_hardness_` did.

    Attributes:
        sites: what is a GELU now.
        left: sites that are λ-GELU still: why, by name.
    """

    sites: tuple[FoldedSite, ...]
    left: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return asdict(self, dict_factory=as_lists)

    def __str__(self) -> str:
        rows = [
            (
                ", ".join((site.name, *site.also_at)),
                f"{site.hardness_min:.4g}",
                f"{site.hardness_max:.4g}",
                site.predecessor,
                ", ".join(site.successors),
            )
            for site in self.sites
        ]
        lines = [
            f"{len(self.sites)} sites are GELU now, λ is in their neighbours",
            format_table(("site", "λ min", "λ max", "times λ", "divided by λ"), rows),
        ]
        lines += [f"still λ-GELU: {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def fold_hardness_(model: nn.Module, example_inputs: Any = None) -> FoldingReport:
    """Makes every site an ``nn.GELU``, in place, with its λ in the layers before and after it.

    f(x; λ) = GELU(λx) / λ: the weight and bias of the layer before are multiplied by λ, the weight of the layers behind
    is divided by it. The network computes the same up to the rounding of those weights to their dtype; λ is no longer
    learned. What an optimizer has gathered for these weights is not scaled with them.

    Before a site there may be a linear layer, a convolution or a norm with a weight, whose output goes to the site
    alone; behind it linear layers and convolutions. :func:`lambda_gelu.find_successors` tells what may lie between, and
    here a product with another tensor may too, as with the gate of GEGLU. A site without such neighbours is left and
    named.

    Args:
        model: a model with sites.
        example_inputs: as for :func:`lambda_gelu.find_successors`. Default None.

    Returns:
        FoldingReport: what was folded and what was left, with the reason; prints as a table.

    Raises:
        ValueError: for a model without a site, where `model` itself is one, for a site that torch.compile wraps by
            itself, for a model inside DistributedDataParallel or spread over ranks. Nothing is changed.
    """
    places = replaceable_sites(model, "nn.GELU()", "give its .module to fold_hardness_, and wrap that anew")
    refuse_spread(model, "fold_hardness_ before the model is spread over ranks")
    try:
        dataflow = trace(model, example_inputs)
    except DataflowError as reason:
        advice = "; give example_inputs" if example_inputs is None else ""
        return FoldingReport((), dict.fromkeys(places, f"{reason}{advice}"))
    folded = []
    left = {}
    for name, slots in places.items():
        site = slots[0].module
        try:
            before, behind = _fold(dataflow, site)
        except DataflowError as reason:
            left[name] = str(reason)
            continue
        hardness = site.hardness.tolist()
        gelu = nn.GELU().train(site.training)
        for slot in slots:
            slot.put(gelu)
        also_at = tuple(slot.name for slot in slots[1:])
        folded.append(FoldedSite(name, also_at, min(hardness), max(hardness), before, behind))
    return FoldingReport(tuple(folded), left)


def _fold(dataflow: Dataflow, site: LambdaGELU) -> tuple[str, tuple[str, ...]]:
    """Scales the neighbours of a site; raises DataflowError, and changes nothing, where it has none that can take λ."""
    call = only_call(dataflow, site)
    before = _predecessor(dataflow, call)
    behind = list(only_calls(call.output, of_factor=True))
    for each in behind:
        reason = why_no_factor_in(each.module)
        if reason:
            raise DataflowError(f"it goes to {dataflow.names[each.module]}: {reason}")
        refuse_shared(dataflow, each.module, ("weight",))
    hardness = site.hardness.detach()
    hardness = hardness.to("cpu", torch.float64)
    new = [(before.module, factors_out(before.module, _factors_before(site, call, before, hardness)))]
    for each, indices in _indices_behind(site, call.output, behind).items():
        new.append((each.module, factors_in(each.module, 1 / hardness[list(indices)])))
    for module, values in new:
        _refuse_overflow(dataflow, module, values)
    with torch.no_grad():
        for module, values in new:
            for key, value in values.items():
                module.get_parameter(key).copy_(value)
    return dataflow.names[before.module], tuple(dataflow.names[each.module] for each in behind)


def _predecessor(dataflow: Dataflow, call: Call) -> Call:
    """The call of the layer whose output a site alone consumes."""
    source: Call | Value | None = call.input
    while isinstance(source, Value):
        source = source.sources[0] if len(source.sources) == 1 else None
    if source is None:
        raise DataflowError("what comes before it is no layer that is known")
    name = dataflow.names[source.module]
    reason = why_no_factor_out(source.module)
    if reason:
        raise DataflowError(f"it comes from {name}: {reason}")
    refuse_shared(dataflow, source.module, ("weight", "bias"))
    others = [end for end, _ in ends_of(source.output, of_factor=True) if end is not call]
    if others:
        other = others[0]
        what = dataflow.names[other.module] if isinstance(other, Call) else other.what
        raise DataflowError(f"{name} before it also goes to {what}")
    return source


def _factors_before(site: LambdaGELU, call: Call, before: Call, hardness: Tensor) -> Tensor:
    """λ for every output channel of the layer before a site."""
    if len(hardness) == 1:
        return hardness.expand(out_channels(before.module))
    shape = before.output.shape
    dim = out_dim(before.module)
    if shape is None or call.input is None or call.input.shape is None:
        list(ends_of(before.output, torch.empty(0), of_factor=True))  # what moves the channels raises
        if site.channel_dim != dim:
            raise DataflowError(
                f"it has a λ per channel along dimension {site.channel_dim}, and only example_inputs tell whether that "
                f"is dimension {dim}, where the layer before it has the channels"
            )
        return hardness
    ((_, channels),) = ends_of(before.output, channel_positions(shape, dim), of_factor=True)
    indices = channel_positions(call.input.shape, site.channel_dim)
    channels, indices = channels.long() - 1, indices.long() - 1
    factors = torch.ones(shape[dim], dtype=torch.float64, device="cpu")
    factors[channels] = hardness[indices]
    if not torch.equal(factors[channels], hardness[indices]):
        raise DataflowError("one channel of the layer before it has several λ")
    return factors


def _indices_behind(site: LambdaGELU, output: Value, behind: list[Call]) -> dict[Call, tuple[int, ...]]:
    """Which λ each input channel of the layers behind a site is divided by."""
    if site.num_parameters == 1:
        return {call: (0,) * in_channels(call.module) for call in behind}
    return channels_of(site, output, of_factor=True)[1]


def _refuse_overflow(dataflow: Dataflow, module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for key, value in values.items():
        was = module.get_parameter(key).detach()
        if not torch.equal(value.isfinite(), was.isfinite()):
            raise DataflowError(f"{dataflow.names[module]}.{key} would overflow {value.dtype}")
