"""λ and κ of a model in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..sites import find_sites
from ._metrics import hardness_metrics, preactivation_std
from ._require import require

require("tensorboard", "tensorboard")

__all__ = ["log_hardness", "preactivation_std"]


def log_hardness(writer: Any, model: nn.Module, step: int, *, std: Mapping[str, Tensor] | None = None) -> None:
    """Writes λ of every site, and with `std` its effective hardness κ = λσ.

    Scalars ``hardness/<site>`` and ``effective_hardness/<site>``, means over the channels; ``hardness_min``,
    ``hardness_mean`` and ``hardness_max`` over all sites and channels. Histograms ``hardness_per_channel/<site>`` and
    ``effective_hardness_per_channel/<site>``, where a site has more than one λ, of the channels where they are finite.
    Nothing for a model without sites, as after :func:`lambda_gelu.to_relu_`.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or what has its ``add_scalar`` and ``add_histogram``. None
            writes nothing: where ranks share λ (``fully_shard``, ``HardnessParallel``), every rank must call this.
        step: the global step.
        std: σ of the pre-activations by site name, of shape ``(num_parameters,)``, as :func:`preactivation_std` gives
            it. Sites that it lacks get no κ. Default None.

    Raises:
        ValueError: for a name in `std` that is no site; nothing is written.

    Example::

        >>> with preactivation_std(model) as std:
        ...     loss = train_step(model, batch)
        >>> log_hardness(writer, model, step, std=std)
    """
    scalars = hardness_metrics(model)
    sites = find_sites(model) if scalars else {}
    unknown = [name for name in std or () if name not in sites]
    if unknown:
        raise ValueError(f"std names {', '.join(unknown)}, but the sites are {list(sites)}")
    histograms: dict[str, Tensor] = {}
    for name, site in sites.items():
        hardness = site.hardness.detach()
        values = {"hardness": hardness}
        if std is not None and name in std:
            values["effective_hardness"] = hardness * std[name].to(hardness)
            scalars[f"effective_hardness/{name}"] = values["effective_hardness"].mean().item()
        if site.num_parameters > 1:
            histograms |= {f"{quantity}_per_channel/{name}": value for quantity, value in values.items()}
    if writer is None:
        return
    for tag, scalar in scalars.items():
        writer.add_scalar(tag, scalar, step)
    for tag, value in histograms.items():
        finite = value[value.isfinite()]
        if finite.numel():  # a writer refuses a histogram of nothing but NaN
            writer.add_histogram(tag, finite, step)
