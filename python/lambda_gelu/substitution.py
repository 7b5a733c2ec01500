"""From λ-GELU to ReLU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from . import _C
from .modules import LambdaGELU
from .report import SubstitutedSite, SubstitutionReport
from .sites import Slot, find_sites, find_slots, refuse_compiled, refuse_synchronized, unwrapped


def to_relu_(model: nn.Module) -> SubstitutionReport:
    """Replaces every :class:`LambdaGELU` of a model by ``nn.ReLU``, in place, without touching a weight.

    Hooks of a replaced module go with it, and an optimizer keeps its λ until it is made anew. Where ranks share λ
    (``fully_shard``, ``HardnessParallel``) every rank must call this.

    Returns:
        SubstitutionReport: what was replaced; prints as a table.

    Raises:
        ValueError: for a model without a site, where `model` itself is one (nothing holds it in which it could be
            replaced), for a site that torch.compile wraps by itself, for a model inside DistributedDataParallel (give
            its ``.module``), and where FSDP1 holds λ. Nothing is changed.
    """
    find_sites(model)
    if isinstance(unwrapped(model), LambdaGELU):
        raise ValueError("the model itself is a LambdaGELU and cannot be replaced in place: write nn.ReLU() instead")
    slots = find_slots(model, LambdaGELU)
    refuse_compiled(slots)
    refuse_synchronized(model, slots, "give its .module to to_relu_, and wrap that anew if it is to be trained on")
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
