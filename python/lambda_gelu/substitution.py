"""From λ-GELU to ReLU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import _C
from ._calls import evaluating, uncompiled
from ._checks import check_choice, check_finite
from ._measured import measured_ser
from ._scores import Metric, aside
from ._trial import Trial
from .correction import BiasCorrection, channel_dims, expected_gaps, why_not_corrected
from .modules import LambdaGELU
from .report import SubstitutedSite, SubstitutionReport
from .site_costs import SiteWeight
from .sites import Slot, find_sites, refuse_spread, replaceable_sites, unwrapped
from .statistics import Statistics, observe
from .successors import NoSuccessor, Successor, find_successors

CORRECTIONS = ("none", "bias")
_ORDERS = ("model", "harm")


def to_relu_(
    model: nn.Module,
    *,
    sites: Iterable[str] | None = None,
    correction: str = "none",
    statistics: Statistics | None = None,
    calibrate: Callable[[nn.Module], object] | None = None,
    weights: Mapping[str, SiteWeight] | None = None,
    evaluate: Callable[[nn.Module], float | Tensor] | None = None,
    higher_is_better: bool | None = None,
    metric_name: str = "metric",
    max_loss: float | None = None,
    order: str | None = None,
    example_inputs: Any = None,
    add_bias: bool = False,
) -> SubstitutionReport:
    """Replaces every :class:`LambdaGELU` of a model by ``nn.ReLU``, in place.

    Without more arguments no weight is touched. Hooks of a replaced module go with it, and an optimizer keeps its λ
    until it is made anew. Where ranks share λ (``fully_shard``, ``HardnessParallel``) every rank must call this.

    With ``correction="bias"`` the shift E[ReLU(x) − f(x; λ)] that the swap adds to each channel is taken back in the
    layers behind a site (:func:`lambda_gelu.find_successors`), for one site after another, and kept only where the
    metric improves: otherwise every bit of those layers is put back. Give a metric that shows small changes, a loss
    rather than an accuracy. Where a convolution reads padding zeros, which are not shifted, its border pixels are
    corrected by too much.

    With `max_loss` one site after another becomes ReLU, each with its correction, and the first at which the metric is
    worse than before by more than `max_loss` stays λ-GELU, as do those after it.

    `evaluate` is called with the model as it stands and with ReLU at more and more sites, each time with the same
    random numbers of torch and without torch.compile: once before and once after the swap, once for each site that is
    corrected, swapped by itself, or measured for its harm. With several processes it must give the same on every rank.

    Args:
        model: a model with sites.
        sites: names of those to replace, as :func:`lambda_gelu.find_sites` has them. Default None: all.
        correction: ``"none"`` or ``"bias"``.
        statistics: of :func:`lambda_gelu.observe`, for κ, SER and zeros in the report; for the correction per channel
            of the successors.
        calibrate: instead of `statistics`: runs calibration data through the model that it is given, in eval mode and
            without gradients. The SER is measured on the tensors too.
        weights: of :func:`lambda_gelu.site_weights`, for the predicted cost in the report. Default None.
        evaluate: gives the metric of the model it is given. Needed for the correction, for `max_loss` and for the order
            by harm. It may switch modes.
        higher_is_better: of the metric. Needed where `evaluate` is. Default None.
        metric_name: for the report, with its unit.
        max_loss: by how much the metric may become worse in all; finite, not negative. Default None: by anything.
        order: ``"model"`` or ``"harm"``: from the site whose swap alone costs the metric least to that where it costs
            most, as measured. Default None: by harm where there is a `max_loss`.
        example_inputs: to find the successors with; see :func:`lambda_gelu.find_successors`. Default None.
        add_bias: whether a linear layer or convolution that has no bias gets one for the correction. That adds a
            parameter to the state dict, which no optimizer knows. Default False.

    Returns:
        SubstitutionReport: every site, what was replaced, and what became of its correction; the metric ``before``,
        ``swapped`` and ``corrected``; prints as tables.

    Raises:
        ValueError: for a model without a site, as after this; where `model` itself is one (nothing holds it in which it
            could be replaced); for a site that torch.compile wraps by itself; for a model inside
            DistributedDataParallel (give its ``.module``); where FSDP1 holds λ; for a correction of weights that are
            spread over ranks; for unknown sites; for statistics of another model, without data, of a site that was
            never executed or with NaN; for arguments that lack another; where the metric is NaN before the swap.
        TypeError: where `evaluate` gives no number.

        Nothing is changed by either, nor by an exception of `evaluate` or `calibrate`.
    """
    refuse_substituted(model)
    places = replaceable_sites(
        model, "nn.ReLU()", "give its .module to to_relu_, and wrap that anew if it is to be trained on"
    )
    all_sites = {name: slots[0].module for name, slots in places.items()}
    chosen = _chosen(all_sites, sites)
    check_choice("correction", correction, CORRECTIONS)
    check_max_loss(max_loss)
    order = ("harm" if max_loss is not None else "model") if order is None else order
    check_choice("order", order, _ORDERS)
    _check_together(
        correction=correction,
        statistics=statistics,
        calibrate=calibrate,
        evaluate=evaluate,
        higher_is_better=higher_is_better,
        max_loss=max_loss,
        order=order,
    )
    facts = {name: _facts(slots) for name, slots in places.items()}
    _refuse_unknown("weights", weights or {}, all_sites)
    for name, weight in (weights or {}).items():
        facts[name]["predicted_cost"] = weight.cost
    successors: dict[str, Successor | NoSuccessor] = {}
    if correction == "bias":
        refuse_spread(model, "correct before the model is spread over ranks")
        successors = find_successors(model, example_inputs)
    if calibrate is not None:
        statistics = _calibrated(model, calibrate, all_sites, successors, facts)
    if statistics is not None:
        _describe(model, statistics, all_sites, chosen, facts)
    corrections: dict[str, BiasCorrection] = {}
    if statistics is not None and correction == "bias":
        for name, site in chosen.items():
            successor = successors[name]
            facts[name]["correction"] = why_not_corrected(successor, add_bias) or str(successor)
            if isinstance(successor, Successor) and facts[name]["correction"] == str(successor):
                corrections[name] = BiasCorrection(successor, expected_gaps(statistics, name, site, successor))
    swapped = list(chosen)
    metrics: dict[str, float] = {}
    if evaluate is not None:
        trial = Trial(Metric(model, evaluate, higher_is_better), chosen, corrections, facts)
        swapped, metrics = trial.run(max_loss, order)
    for name in swapped:
        relu = nn.ReLU().train(all_sites[name].training)
        for slot in places[name]:
            slot.put(relu)
    report_sites = tuple(SubstitutedSite(**its, substituted=name in swapped) for name, its in facts.items())
    return SubstitutionReport(report_sites, metric_name, higher_is_better, metrics)


# --- what is refused -------------------------------------------------------------------------------------------------


def refuse_substituted(model: nn.Module) -> None:
    if not isinstance(model, nn.Module) or any(isinstance(module, LambdaGELU) for module in model.modules()):
        return
    relus = sum(isinstance(module, nn.ReLU) for module in model.modules())
    if relus:
        raise ValueError(
            f"{type(unwrapped(model)).__name__} has no LambdaGELU module, but {relus} nn.ReLU: substituted already"
        )


def _chosen(all_sites: Mapping[str, LambdaGELU], names: Iterable[str] | None) -> dict[str, LambdaGELU]:
    if names is None:
        return dict(all_sites)
    if isinstance(names, str):
        raise TypeError(f"sites must be a list of names, got the string {names!r}")
    wanted = list(names)
    _refuse_unknown("sites", wanted, all_sites)
    if not wanted:
        raise ValueError("sites is empty: nothing would be replaced")
    return {name: site for name, site in all_sites.items() if name in wanted}


def _refuse_unknown(argument: str, names: Iterable[str], all_sites: Mapping[str, LambdaGELU]) -> None:
    unknown = [str(name) for name in names if name not in all_sites]
    if unknown:
        raise ValueError(f"{argument} names {', '.join(unknown)}, but the sites are {', '.join(all_sites)}")


def check_max_loss(max_loss: float | None) -> None:
    if max_loss is None:
        return
    check_finite("max_loss", max_loss)
    if max_loss < 0:
        raise ValueError(f"max_loss must not be negative, got {max_loss}")


def _check_together(
    *,
    correction: str,
    statistics: Statistics | None,
    calibrate: Callable[[nn.Module], object] | None,
    evaluate: Callable[[nn.Module], float | Tensor] | None,
    higher_is_better: bool | None,
    max_loss: float | None,
    order: str,
) -> None:
    if statistics is not None and calibrate is not None:
        raise ValueError("statistics and calibrate are both given: calibrate makes the statistics")
    if correction == "bias" and statistics is None and calibrate is None:
        raise ValueError("correction='bias' needs calibration data: give calibrate, or statistics")
    for argument, is_given in (
        ("correction='bias'", correction == "bias"),
        ("max_loss", max_loss is not None),
        ("order='harm'", order == "harm"),
    ):
        if is_given and evaluate is None:
            raise ValueError(f"{argument} needs evaluate, the metric that it is judged by")
        if is_given and not isinstance(higher_is_better, bool):
            raise ValueError(f"{argument} needs higher_is_better, True or False, got {higher_is_better!r}")


# --- what the report says --------------------------------------------------------------------------------------------


def _facts(slots: list[Slot[LambdaGELU]]) -> dict[str, Any]:
    """What is known of a site without data, under the names of :class:`SubstitutedSite`."""
    hardness = slots[0].module.hardness.tolist()
    return {
        "name": slots[0].name,
        "also_at": tuple(slot.name for slot in slots[1:]),
        "hardness_min": min(hardness),
        "hardness_mean": sum(hardness) / len(hardness),
        "hardness_max": max(hardness),
        "gate_gap": _C.gate_gap(min(hardness)),
    }


def _calibrated(
    model: nn.Module,
    calibrate: Callable[[nn.Module], object],
    sites: Mapping[str, LambdaGELU],
    successors: Mapping[str, Successor | NoSuccessor],
    facts: Mapping[str, dict[str, Any]],
) -> Statistics:
    by_channel = {"per": "channel", "channel_dim": channel_dims(sites, successors)} if successors else {}
    with (
        aside(model),
        uncompiled(),
        evaluating(model),
        torch.no_grad(),
        measured_ser(sites) as ser,
        observe(model, **by_channel) as statistics,
    ):
        calibrate(model)
    for name, decibels in ser.items():
        facts[name]["measured_ser_db"] = decibels
    return statistics


def _describe(
    model: nn.Module,
    statistics: Statistics,
    sites: Mapping[str, LambdaGELU],
    chosen: Mapping[str, LambdaGELU],
    facts: Mapping[str, dict[str, Any]],
) -> None:
    statistics.check_model(model)
    Statistics({name: statistics[name] for name in chosen}, per=statistics.per).require_complete("to_relu_")
    for name, histogram in statistics.items():
        if histogram.count and not histogram.nonfinite:
            hardness = sites[name].hardness.detach()
            facts[name] |= {
                "effective_hardness": histogram.effective_hardness(hardness),
                "ser_db": histogram.ser_db(hardness),
                "expected_gap": histogram.expected_gap(hardness),
                "zeros_before": histogram.near_zero_share(hardness),
                "zeros_after": histogram.zero_share,
            }


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
