"""What adds up the pre-activations of one site: called by its forward, eager or compiled."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ._dtypes import widest_dtype
from .compiler import is_exporting
from .histogram import check_channel_dim, empty_tables

_is_compiling = torch.compiler.is_compiling
_observe = torch.ops.lambda_gelu.observe_.default

# As many channels as each site had in a dimension. With that a second observation starts with tables that compiled code
# takes without a new compilation.
_known_channels: MutableMapping[Any, dict[int, int]] = WeakKeyDictionary()


class Observer:
    """The tables of one site, and what its forward does with an input.

    Dynamo traces :meth:`add`: tables are inputs of the graph, so that another observation runs the same code.

    Attributes:
        counts, moments: as :class:`lambda_gelu.Histogram` has them, on the site's device; None where the number of
            channels is not known yet.
    """

    def __init__(self, name: str, site: Any, channel_dim: int | None, every: int) -> None:
        self.name = name
        self.channel_dim = channel_dim
        self.counts: Tensor | None = None
        self.moments: Tensor | None = None
        self.others: Iterable[Observer] = ()  # of the same model
        self._site = site
        self._guessed = False
        self._every = every
        with torch.inference_mode(False):
            self._calls = torch.zeros(1, dtype=torch.int64, device="cpu") if every > 1 else None
        channels = self._expected_channels()
        if channels is not None:
            self._make_room(channels, _with_float64(site.raw_hardness.device))

    def add(self, input: Tensor) -> None:
        """Counts the elements of an input; of every n-th, where the observation says so."""
        x, part = input.detach(), None
        if _is_compiling():
            if is_exporting():  # the program would go on counting
                return
        elif _is_recomputing():
            return
        else:
            self._check(x)
        if hasattr(x, "to_local"):
            x, part = _local_part(x, self.channel_dim)
        x = x.to(_with_float64(x.device))
        channels = 1 if self.channel_dim is None else x.size(self.channel_dim)
        self._make_room(channels if part is None else part[0], x.device)
        counts, moments = self.counts, self.moments
        if part is not None:
            counts, moments = counts.narrow(0, part[1], channels), moments.narrow(0, part[1], channels)
        dim = 0 if self.channel_dim is None else self.channel_dim
        if self._calls is None:
            _observe(x, counts, moments, dim)
        else:
            # In plain eager code the same without the way to it.
            count = _observe_every if _is_compiling() or _is_transforming() else _observe_every_
            count(x, counts, moments, self._calls, dim, self._every)

    def _check(self, x: Tensor) -> None:
        try:
            check_channel_dim(self.channel_dim, x)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def _make_room(self, channels: int, device: torch.device) -> bool:
        """Tables for so many channels. Dynamo runs this once for each graph that it traces, as it is."""
        counts, moments = self.counts, self.moments
        if counts is not None and moments is not None and counts.size(0) == channels:
            if counts.device != device:
                self.counts, self.moments = counts.to(device), moments.to(device)
            return True
        if counts is not None and self.is_used:
            raise ValueError(
                f"{self.name}: its input had {counts.size(0)} channels in dimension {self.channel_dim}, and now "
                f"{channels}"
            )
        self._refuse_other_hardness(channels)
        self.counts, self.moments = empty_tables(channels, device)
        self._guessed = False
        if self.channel_dim is not None:
            for other in self.others:
                # Layers that share one piece of compiled code often have as many channels: with tables at hand, they
                # need no compilation each.
                if other.counts is None and other.channel_dim == self.channel_dim:
                    other.counts, other.moments = empty_tables(channels, device)
                    other._guessed = True
        return True

    _make_room._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as compiler.prepare

    def _refuse_other_hardness(self, channels: int) -> None:
        """Raises before an input is counted that the site itself will refuse."""
        site = self._site
        is_its_own = site.num_parameters > 1 and self.channel_dim == site.channel_dim
        spread = hasattr(site.raw_hardness, "device_mesh")  # this rank may have some of the channels
        if is_its_own and not spread and channels != site.num_parameters:
            raise ValueError(
                f"{self.name}: its input has {channels} channels in dimension {self.channel_dim}, but it has "
                f"{site.num_parameters} λ"
            )

    def remember(self) -> None:
        """Notes the number of channels for the next observation of the site."""
        if self.channel_dim is not None and self.counts is not None and self.is_used:
            _known_channels.setdefault(self._site, {})[self.channel_dim] = self.counts.size(0)

    @property
    def is_used(self) -> bool:
        """Whether anything was counted."""
        if self.counts is None or self.moments is None:
            return False
        return bool(self.counts.any()) or bool(self.moments[:, 3].any())

    @property
    def calls(self) -> int:
        """How many there were, where only every n-th is counted; else 0."""
        return 0 if self._calls is None else int(self._calls)

    @calls.setter
    def calls(self, count: int) -> None:
        if self._calls is not None:
            self._calls.fill_(count)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Copies of counts and moments on the CPU; without a row where the number of channels is not known."""
        if self.counts is None or self.moments is None or (self._guessed and not self.is_used):
            return empty_tables(0, "cpu")
        return self.counts.detach().to("cpu", copy=True), self.moments.detach().to("cpu", copy=True)

    @torch.no_grad()
    def write(self, counts: Tensor, moments: Tensor) -> None:
        """Puts these in place of what was counted."""
        if self.counts is None or self.moments is None or self.counts.size(0) != counts.size(0):
            device = self._site.raw_hardness.device if self.counts is None else self.counts.device
            self.counts, self.moments = empty_tables(counts.size(0), _with_float64(device))
        self.counts.copy_(counts)
        self.moments.copy_(moments)

    def clear(self) -> None:
        """Counts from zero again; every n-th call as before."""
        for table in (self.counts, self.moments):
            if table is not None:
                table.zero_()

    def _expected_channels(self) -> int | None:
        if self.channel_dim is None:
            return 1
        known = _known_channels.get(self._site, {}).get(self.channel_dim)
        if known is None and self._site.num_parameters > 1 and self.channel_dim == self._site.channel_dim:
            return self._site.num_parameters
        return known


def _with_float64(device: torch.device) -> torch.device:
    """Where to add up what is on this device."""
    return device if widest_dtype(device) is torch.float64 else torch.device("cpu")


_graph_task = getattr(torch._C, "_current_graph_task_id", None)


def _is_recomputing() -> bool:
    """Whether a backward pass runs: activation checkpointing calls a forward there again, with what was counted."""
    return _graph_task is not None and _graph_task() != -1


_transform_level = getattr(torch._C._functorch, "maybe_current_level", None)


def _is_transforming() -> bool:
    """Whether torch.func runs this, which lets an operator write to what it was not given, but no plain add_."""
    return _transform_level is None or _transform_level() is not None


def _local_part(x: Any, channel_dim: int | None) -> tuple[Tensor, tuple[int, int] | None]:
    """What this rank has of a DTensor; where that is some of the channels, also their number in all and the first."""
    if any(placement.is_partial() for placement in x.placements):
        return x.full_tensor(), None
    part = None
    if channel_dim is not None:
        count = x.size(channel_dim)
        for mesh_dim, placement in enumerate(x.placements):
            if placement.is_shard(channel_dim % x.dim()):
                if part is not None:
                    raise NotImplementedError(
                        f"dimension {channel_dim}, the channels, is spread over two mesh dimensions"
                    )
                each = -(-count // x.device_mesh.size(mesh_dim))  # as torch.chunk divides it
                part = (count, min(count, each * x.device_mesh.get_local_rank(mesh_dim)))
    return x.to_local(), part


# --- every n-th call -------------------------------------------------------------------------------------------------
# An operator, since a counter in Python would be a constant of compiled code. It is on the CPU: nothing waits for it.

_library = torch.library.Library("lambda_gelu", "FRAGMENT")
_library.define(
    "observe_every_(Tensor input, Tensor(a!) counts, Tensor(b!) moments, Tensor(c!) calls, int channel_dim, int every)"
    " -> ()",
    tags=[torch.Tag.pt2_compliant_tag],
)


def _observe_every_(  # noqa: PLR0917 - as the schema
    input: Tensor, counts: Tensor, moments: Tensor, calls: Tensor, channel_dim: int, every: int
) -> None:
    if calls.item() % every == 0:
        _observe(input, counts, moments, channel_dim)
    calls.add_(1)


_library.impl("observe_every_", _observe_every_, "CompositeExplicitAutograd")
_library.impl("observe_every_", lambda *arguments: None, "Meta")
_observe_every = torch.ops.lambda_gelu.observe_every_.default


def _observe_every_vmap(  # noqa: PLR0917 - as the schema
    info: Any,
    in_dims: tuple[int | None, ...],
    input: Tensor,
    counts: Tensor,
    moments: Tensor,
    calls: Tensor,
    channel_dim: int,
    every: int,
) -> tuple[None, None]:
    """One call, with all examples: as observe_ counts them."""
    assert in_dims[0] is not None
    _observe_every(input.movedim(in_dims[0], 0), counts, moments, calls, channel_dim + (channel_dim >= 0), every)
    return None, None


torch.library.register_vmap("lambda_gelu::observe_every_", _observe_every_vmap, lib=_library)
