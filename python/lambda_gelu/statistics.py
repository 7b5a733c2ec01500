"""What the sites of a model are given while it runs: histograms of each, or of each of its channels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_int
from ._observer import Observer
from ._table import format_table
from .histogram import Histogram
from .sites import find_sites

__all__ = ["Histogram", "Statistics", "observe"]

_PER = ("layer", "channel")


class Statistics(Mapping[str, Histogram]):
    """The :class:`Histogram` of every site of a model by name, in the order of :func:`lambda_gelu.find_sites`.

    :func:`observe` makes it. Inside its context a look at a site gives what was counted until then; afterwards it
    stands still. Sites that were not called are in it too, empty.

    Attributes:
        per: ``"layer"`` or ``"channel"``.
    """

    def __init__(
        self, histograms: Mapping[str, Histogram], *, per: str = "layer", num_hardness: Mapping[str, int] | None = None
    ) -> None:
        check_per(per)
        self.per = per
        self._histograms = dict(histograms)
        self._num_hardness = dict.fromkeys(histograms, 0) if num_hardness is None else dict(num_hardness)
        self._observers: dict[str, Observer] | None = None
        self._calls: dict[str, int] = {}  # of the sites, where only every n-th is counted

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """What :meth:`save` wrote."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        statistics = cls({})
        statistics.load_state_dict(state)
        return statistics

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes :meth:`state_dict` with ``torch.save``; ``weights_only`` loads it."""
        torch.save(self.state_dict(), path)

    # --- as a mapping ------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Histogram:
        if self._observers is not None and name in self._observers:
            observer = self._observers[name]
            return Histogram(*observer.tables(), name=name, channel_dim=observer.channel_dim)
        return self._histograms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._histograms if self._observers is None else self._observers)

    def __len__(self) -> int:
        return len(self._histograms if self._observers is None else self._observers)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        header = ("site", "count", "mean", "std", "x <= 0")
        return f"Statistics(per={self.per!r})\n" + format_table(header, [_row(*item) for item in self.items()])

    # --- what they can be used for -----------------------------------------------------------------------------------

    @property
    def never_executed(self) -> tuple[str, ...]:
        """Sites that were not called, or with nothing."""
        return tuple(name for name, histogram in self.items() if not (histogram.count or histogram.nonfinite))

    def require_complete(self, what: str = "statistics") -> None:
        """Raises where something of them cannot be used.

        Args:
            what: for the message: what needs them.

        Raises:
            ValueError: for no calibration data at all, naming sites that were never executed, and naming sites whose
                activations had NaN or infinities.
        """
        empty = self.never_executed
        if len(empty) == len(self):
            raise ValueError(f"{what}: there is no calibration data, no site was executed while it was observed")
        if empty:
            raise ValueError(
                f"{what}: never executed while it was observed: {', '.join(empty)}. Give calibration data that reaches "
                "every site"
            )
        broken = {name: histogram.nonfinite for name, histogram in self.items() if histogram.nonfinite}
        if broken:
            listed = ", ".join(f"{name} ({count})" for name, count in broken.items())
            raise ValueError(f"{what}: activations that are NaN or infinite at {listed}")

    def check_model(self, model: nn.Module) -> None:
        """Raises where these are statistics of another model.

        Raises:
            ValueError: naming the sites that only one of them has, or that have another number of λ. Models that differ
                in neither cannot be told apart.
        """
        sites = find_sites(model)
        missing, foreign = [n for n in sites if n not in self], [n for n in self if n not in sites]
        if missing or foreign:
            raise ValueError(
                "these are the statistics of another model: "
                + "; ".join(
                    f"{text} {', '.join(names)}"
                    for text, names in (("they lack", missing), ("the model has no site", foreign))
                    if names
                )
            )
        self._check_num_hardness({name: site.num_parameters for name, site in sites.items()}, "the model")

    # --- together with others ----------------------------------------------------------------------------------------

    def snapshot(self) -> Statistics:
        """A copy of what was counted until now, which observes nothing: to reduce, save or compare."""
        return Statistics(dict(self), per=self.per, num_hardness=self._num_hardness)

    def reset(self) -> None:
        """Counts from zero again, as for statistics of a window of the training."""
        if self._observers is None:
            raise RuntimeError("only what is being observed can count from zero: call reset() inside observe()")
        for observer in self._observers.values():
            observer.clear()

    def merge(self, other: Statistics) -> Statistics:
        """Adds what other statistics of the same model have counted; those stay as they are.

        Returns:
            Statistics: this one.

        Raises:
            ValueError: for statistics of another model, or with other channels; nothing is changed.
        """
        if not isinstance(other, Statistics):
            raise TypeError(f"other must be Statistics, got {type(other).__name__}")
        self._check_alike(other)
        merged = {}
        for name, histogram in self.items():
            more = other[name]
            # A site that only one of them has reached has as many channels as there.
            merged[name] = more if histogram.num_channels == 0 else histogram
            if histogram.num_channels and more.num_channels:
                merged[name] = histogram.merge(more)
        self._write(merged)
        return self

    def all_reduce(self, group: Any = None) -> Statistics:
        """Adds the statistics of all ranks up, so that every rank has the sum, the same to the last bit.

        Every rank must call it, after :func:`observe` or on a :meth:`snapshot`. Where ranks compute the same, as from
        replicated inputs, each counts it, which changes no share, mean or SER.

        Args:
            group: a process group of torch.distributed. Default None: all ranks.

        Returns:
            Statistics: this one.

        Raises:
            RuntimeError: inside ``observe``, whose sums would be added again and again; nothing is changed.
            ValueError: on every rank, where the ranks observed other sites or channels; nothing is changed.
        """
        from torch import distributed  # noqa: PLC0415 - only who has several processes needs it

        if self._observers is not None:
            raise RuntimeError("all_reduce() inside observe(): reduce a snapshot(), or after the context")
        rank_count = distributed.get_world_size(group)
        layouts: list[Any] = [None] * rank_count
        distributed.all_gather_object(layouts, self._layout(), group=group)
        channels = _common_channels(layouts)
        tables = {name: _with_rows(histogram, channels[name]) for name, histogram in self.items()}
        device = _device_of(distributed, group)
        counts = torch.cat([counts for counts, _ in tables.values()]).to(device)
        distributed.all_reduce(counts, group=group)
        # Sums of floating-point numbers: gathered and added in the order of the ranks, the same everywhere.
        mine = torch.cat([moments for _, moments in tables.values()]).to(device)
        everyone = [torch.empty_like(mine) for _ in range(rank_count)]
        distributed.all_gather(everyone, mine, group=group)
        rows = [channels[name] for name in self]
        moments = torch.stack(everyone).cpu().sum(0)
        reduced = zip(self.items(), counts.cpu().split(rows), moments.split(rows), strict=True)
        self._write(
            {
                name: Histogram(its_counts, its_moments, name=name, channel_dim=histogram.channel_dim)
                for (name, histogram), its_counts, its_moments in reduced
            }
        )
        return self

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain strings, numbers, dicts and tensors on the CPU (copies)."""
        return {
            "per": self.per,
            "sites": {
                name: {
                    "counts": histogram.counts.clone(),
                    "moments": histogram.moments.clone(),
                    "channel_dim": histogram.channel_dim,
                    "num_hardness": self._num_hardness[name],
                    "calls": self._seen_calls().get(name, 0),
                }
                for name, histogram in self.items()
            },
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Puts what was saved in place of what was counted; inside :func:`observe` it goes on from there.

        Raises:
            ValueError: for a state that is none, and for one of another model; nothing is changed.
        """
        loaded = _from_state(state_dict)
        if len(self):
            self._check_alike(loaded)
        else:
            self.per, self._num_hardness = loaded.per, loaded._num_hardness
        self._write(dict(loaded))
        self._calls = loaded._calls
        for name, observer in (self._observers or {}).items():
            observer.calls = loaded._calls[name]

    def __getstate__(self) -> dict[str, Any]:
        # A copy or pickle made inside observe() would otherwise take the sites with it.
        return {**self.__dict__, "_histograms": dict(self), "_calls": self._seen_calls(), "_observers": None}

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _check_alike(self, other: Statistics) -> None:
        if set(other) != set(self):
            differing = [name for name in (*self, *other) if (name in self) != (name in other)]
            raise ValueError(f"these are the statistics of another model: only one of them has {', '.join(differing)}")
        self._check_num_hardness(other._num_hardness, "the other")
        for name, histogram in self.items():
            ours, theirs = _layout(histogram), _layout(other[name])
            if self.per != other.per or (ours != theirs and ours[0] and theirs[0]) or ours[1] != theirs[1]:
                raise ValueError(
                    f"{name} has {_described(ours)} (per {self.per}), and {_described(theirs)} (per {other.per}) "
                    "in the other statistics"
                )

    def _check_num_hardness(self, others: Mapping[str, int], whose: str) -> None:
        for name, count in self._num_hardness.items():
            if count and others[name] and count != others[name]:
                raise ValueError(
                    f"these are the statistics of another model: {name} had {count} λ when it was observed, but "
                    f"{whose} has {others[name]}"
                )

    def _layout(self) -> dict[str, Any]:
        return {"per": self.per, "sites": {name: _layout(histogram) for name, histogram in self.items()}}

    def _seen_calls(self) -> dict[str, int]:
        return self._calls if self._observers is None else {n: each.calls for n, each in self._observers.items()}

    def _write(self, histograms: Mapping[str, Histogram]) -> None:
        if self._observers is None:
            self._histograms = dict(histograms)
        else:
            for name, histogram in histograms.items():
                if histogram.num_channels:
                    self._observers[name].write(histogram.counts, histogram.moments)
                else:
                    self._observers[name].clear()


@contextmanager
def observe(
    model: nn.Module,
    *,
    per: str = "layer",
    channel_dim: int | Mapping[str, int | None] | None = None,
    every: int = 1,
) -> Iterator[Statistics]:
    """Counts within the context what every site of the model is given.

    One pass over the input of a site in its forward, in training as in evaluation, compiled or not: code that
    torch.compile made is compiled once more when a model is observed for the first time, and both are kept. Outside the
    context it costs nothing. What activation checkpointing computes again is not counted again (unless compiled by
    itself). Contexts may be nested; each counts everything. Within :func:`lambda_gelu.relu_substituted` it counts what
    the ReLU is given.

    Each process counts what it computes; :meth:`Statistics.all_reduce` adds up. Threads that run one model at the same
    time are not counted right.

    Args:
        model: with at least one :class:`LambdaGELU`.
        per: ``"layer"``: one histogram for each site, or, where the site has a λ for each channel, one for each of
            those; ``"channel"``: one for each index of `channel_dim`.
        channel_dim: with ``"channel"``: the dimension of the activations that counts as channels, for all sites or by
            name, as of the layer that comes next; None by name: that site as a whole. Default None, and for sites that
            are not named: the site's own ``channel_dim``.
        every: only the first call of a site and each `every`-th after it, which costs that much less of a training.
            Default 1: all. Where a step calls the model several times, on data of several kinds, choose one without a
            common divisor with that number, or some kinds are never counted.

    Yields:
        Statistics: of all sites; to be looked at within the context and afterwards.

    Raises:
        ValueError, TypeError: for a model without a site, and naming another argument; nothing is observed. From a
            forward: for activations that do not have the dimension, or had another number of channels before.

    Example::

        >>> with lambda_gelu.observe(model) as statistics:
        ...     validate(model)
        >>> statistics["1"].ser_db(hardness)
        >>> targets = lambda_gelu.suggest_targets(statistics, tolerance_db=30.0)
    """
    sites = find_sites(model)
    check_per(per)
    dims = _channel_dims(sites, per, channel_dim)
    check_int("every", every, 1)
    statistics = Statistics({}, per=per, num_hardness={name: site.num_parameters for name, site in sites.items()})
    observers = {name: Observer(name, site, dims[name], every) for name, site in sites.items()}
    for observer in observers.values():
        observer.others = observers.values()
    statistics._observers = observers
    for name, site in sites.items():
        site._observers = (*site._observers, observers[name])
    try:
        yield statistics
    finally:
        for name, site in sites.items():
            site._observers = tuple(observer for observer in site._observers if observer is not observers[name])
            observers[name].remember()
        statistics._histograms, statistics._calls = dict(statistics), statistics._seen_calls()
        statistics._observers = None


def check_per(per: str) -> None:
    """Raises for what is neither ``"layer"`` nor ``"channel"``."""
    if not isinstance(per, str):
        raise TypeError(f"per must be a str, got {type(per).__name__}")
    if per not in _PER:
        raise ValueError(f'per must be "layer" or "channel", got {per!r}')


def _channel_dims(
    sites: Mapping[str, Any], per: str, channel_dim: int | Mapping[str, int | None] | None
) -> dict[str, int | None]:
    if per == "layer":
        if channel_dim is not None:
            raise ValueError(f'channel_dim={channel_dim} needs per="channel"')
        return {name: site.channel_dim if site.num_parameters > 1 else None for name, site in sites.items()}
    given = channel_dim if isinstance(channel_dim, Mapping) else {}
    unknown = [str(name) for name in given if name not in sites]
    if unknown:
        raise ValueError(f"channel_dim names {', '.join(unknown)}, but the sites are {list(sites)}")
    default = None if isinstance(channel_dim, Mapping) else channel_dim
    dims: dict[str, int | None] = {}
    for name, site in sites.items():
        dim = given.get(name, site.channel_dim if default is None else default)
        if dim is not None:
            check_int(f"channel_dim of {name}", dim)
        dims[name] = dim
    return dims


def _row(name: str, histogram: Histogram) -> tuple[str, ...]:
    values = (histogram.mean, histogram.std, histogram.zero_share) if _is_usable(histogram) else ()
    cells = [f"{value:.4g}" for value in values] or ["-"] * 3
    note = f" ({histogram.nonfinite} NaN or infinite)" if histogram.nonfinite else ""
    return (name, f"{histogram.count}{note}", *cells)


def _is_usable(histogram: Histogram) -> bool:
    return histogram.count > 0 and histogram.nonfinite == 0


def _layout(histogram: Histogram) -> tuple[int, int | None]:
    return histogram.num_channels, histogram.channel_dim


def _described(layout: tuple[int, int | None]) -> str:
    channels, dim = layout
    return "one histogram" if dim is None else f"{channels} channels in dimension {dim}"


def _common_channels(layouts: list[dict[str, Any]]) -> dict[str, int]:
    """Rows of every site, where all ranks agree; a rank whose site was not called has none yet."""
    first = layouts[0]
    for rank, layout in enumerate(layouts):
        if layout["per"] != first["per"] or list(layout["sites"]) != list(first["sites"]):
            raise ValueError(
                f"rank {rank} observed {list(layout['sites'])} per {layout['per']}, and rank 0 {list(first['sites'])} "
                f"per {first['per']}"
            )
    channels = {}
    for name in first["sites"]:
        seen = {rows for layout in layouts if (rows := layout["sites"][name][0])}
        dims = {layout["sites"][name][1] for layout in layouts}
        if len(seen) > 1 or len(dims) > 1:
            raise ValueError(f"{name} has {sorted(seen)} channels on the ranks, in dimensions {list(dims)}")
        channels[name] = max(seen, default=0)
    return channels


def _with_rows(histogram: Histogram, rows: int) -> tuple[Tensor, Tensor]:
    if histogram.num_channels == rows:
        return histogram.counts, histogram.moments
    return histogram.counts.new_zeros(rows, histogram.counts.size(1)), histogram.moments.new_zeros(
        rows, histogram.moments.size(1)
    )


def _device_of(distributed: Any, group: Any) -> torch.device:
    """Where the group can add tensors up."""
    backend = str(distributed.get_backend(group)).lower()
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")


def _from_state(state_dict: Mapping[str, Any]) -> Statistics:
    try:
        per, sites = state_dict["per"], state_dict["sites"]
        histograms = {
            name: Histogram(site["counts"].clone(), site["moments"].clone(), name=name, channel_dim=site["channel_dim"])
            for name, site in sites.items()
        }
        num_hardness = {name: site["num_hardness"] for name, site in sites.items()}
        statistics = Statistics(histograms, per=per, num_hardness=num_hardness)
        statistics._calls = {name: int(site.get("calls", 0)) for name, site in sites.items()}  # older states have none
        return statistics
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no state of Statistics ({type(error).__name__}: {error})") from error
