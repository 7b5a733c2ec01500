"""One distribution of pre-activations, and what the swap to ReLU costs under it for any λ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from . import _C
from ._checks import check_int

BINS = 256
MOMENTS = 4  # sum of x, of x², of ReLU(x)²; number of NaN and infinities

Hardness = float | Sequence[float] | Tensor

_observe = torch.ops.lambda_gelu.observe_.default


class Histogram:
    """The pre-activations that a site was given, counted by sign and size, as one distribution or one per channel.

    The error of the swap, ReLU(x) − f(x; λ) = |x| Φ(−λ|x|), depends on |x| only, so counts over bins of |x| (four per
    octave) answer for every λ. Nothing about the shape of the distribution is assumed; within a bin its density is
    linear, which leaves the SER of smooth distributions within 0.02 dB. The error comes from |x| < 3/λ: where only
    a few activations lie there, it depends on where exactly, which a histogram does not know.

    `hardness` (λ) in the methods is a float, or a sequence or tensor with one value or one per channel. With several
    channels the answer is about all their activations together, as the site has them.

    Attributes:
        counts: int64, shape ``(channels, 256)``, on the CPU.
        moments: float64, shape ``(channels, 4)``, on the CPU: sums of x, x² and ReLU(x)² over the finite x, and the
            number of NaN and infinities, which are counted nowhere else.
        name: of the site, for errors; may be None.
        channel_dim: the dimension of the activations that has the channels; None: one distribution of all.

    Raises:
        ValueError: all methods, where nothing was counted, where NaN or infinities were seen, and for a λ that is not
            finite and positive or has another number of values.
    """

    def __init__(
        self, counts: Tensor, moments: Tensor, *, name: str | None = None, channel_dim: int | None = None
    ) -> None:
        _check_table("counts", counts, torch.int64, BINS)
        _check_table("moments", moments, torch.float64, MOMENTS)
        if counts.size(0) != moments.size(0):
            raise ValueError(f"counts has {counts.size(0)} rows, but moments {moments.size(0)}")
        self.counts = counts.detach().cpu()
        self.moments = moments.detach().cpu()
        self.name = name
        self.channel_dim = channel_dim

    @classmethod
    def of(cls, x: Tensor, *, channel_dim: int | None = None) -> Histogram:
        """The histogram of a tensor.

        Args:
            x: float32, float64, bfloat16 or float16, any shape.
            channel_dim: the dimension with one distribution per index. Default None: one of all elements.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        check_channel_dim(channel_dim, x)
        channels = 1 if channel_dim is None else x.size(channel_dim)
        counts, moments = empty_tables(channels, x.device)
        _observe(x.detach(), counts, moments, 0 if channel_dim is None else channel_dim)
        return cls(counts, moments, channel_dim=channel_dim)

    def merge(self, other: Histogram) -> Histogram:
        """What both have counted, as a new histogram.

        Raises:
            ValueError: where they have another number of channels, or other channel dimensions.
            TypeError: for what is no histogram.
        """
        if not isinstance(other, Histogram):
            raise TypeError(f"other must be a Histogram, got {type(other).__name__}")
        if (other.num_channels, other.channel_dim) != (self.num_channels, self.channel_dim):
            raise ValueError(f"{other!r} cannot be merged into {self!r}")
        return Histogram(
            self.counts + other.counts, self.moments + other.moments, name=self.name, channel_dim=self.channel_dim
        )

    # --- what was seen -----------------------------------------------------------------------------------------------

    @property
    def num_channels(self) -> int:
        """1 for a histogram of all activations of a site."""
        return self.counts.size(0)

    @property
    def channels(self) -> tuple[Histogram, ...]:
        """One histogram for every channel."""
        return tuple(
            Histogram(self.counts[i : i + 1], self.moments[i : i + 1], name=self._channel_name(i))
            for i in range(self.num_channels)
        )

    @property
    def count(self) -> int:
        """Finite activations seen."""
        return int(self.counts.sum())

    @property
    def nonfinite(self) -> int:
        """NaN and infinities seen."""
        return int(self.moments[:, 3].sum())

    @property
    def mean(self) -> float:
        """Of the activations."""
        return self._ask(self._merged.mean)

    @property
    def std(self) -> float:
        """σ, the standard deviation of the activations as a population."""
        return self._ask(self._merged.std)

    @property
    def zero_share(self) -> float:
        """The share of x <= 0, which ReLU makes zero."""
        return self._ask(self._merged.zero_share)

    @property
    def expected_sq_relu(self) -> float:
        """E[ReLU(x)²]."""
        return self._ask(self._merged.expected_sq_relu)

    # --- for any λ ---------------------------------------------------------------------------------------------------

    def expected_gap(self, hardness: Hardness) -> float:
        """E[e], e = ReLU(x) − f(x; λ) >= 0: the shift that the swap adds on average."""
        return self._pooled("expected_gap", hardness)

    def expected_sq_gap(self, hardness: Hardness) -> float:
        """E[e²]."""
        return self._pooled("expected_sq_gap", hardness)

    def ser_db(self, hardness: Hardness) -> float:
        """10 log10(E[ReLU(x)²] / E[e²]) in dB; ∞ where no x differs from 0, −∞ where none is positive."""
        return self._pooled("ser_db", hardness)

    def near_zero_share(self, hardness: Hardness, threshold: float = 0.01) -> float:
        """The share of x whose gate Φ(λx) is below `threshold`. Default 0.01 (ours)."""
        return self._pooled("near_zero_share", hardness, threshold)

    def effective_hardness(self, hardness: Hardness) -> float:
        """κ = λσ; with one λ per channel the standard deviation of λx over all channels."""
        values = self._hardness(hardness)
        if len(values) == 1:
            return self._ask(self._merged.effective_hardness, *values)
        scale = torch.tensor(values, dtype=torch.float64, device="cpu")[:, None]
        scaled = self.moments * torch.cat([scale, scale**2, scale**2, torch.ones_like(scale)], 1)
        return self._ask(_native(self.counts.sum(0), scaled.sum(0)).std)

    def target_from_ser(self, decibels: float) -> float:
        """The λ, one for all channels, whose SER is `decibels`.

        Raises:
            ValueError: also where no λ has it, as where no activation is positive.
        """
        return self._ask(self._merged.target_from_ser, decibels)

    def target_from_gap(self, gap: float) -> float:
        """The λ, one for all channels, at which E[ReLU(x) − f(x; λ)] is `gap`, finite and positive.

        Raises:
            ValueError: also where no λ has it.
        """
        return self._ask(self._merged.target_from_gap, gap)

    def __repr__(self) -> str:
        label = "" if self.name is None else f"{self.name!r}, "
        text = f"Histogram({label}count={self.count}"
        if self.channel_dim is not None:
            text += f", num_channels={self.num_channels}, channel_dim={self.channel_dim}"
        if self.nonfinite:
            return f"{text}, nonfinite={self.nonfinite})"
        return f"{text}, mean={self.mean:.4g}, std={self.std:.4g})" if self.count else f"{text})"

    def __getstate__(self) -> dict[str, Any]:
        native = ("_native", "_merged")  # cannot be copied or pickled, and is made anew
        return {name: value for name, value in self.__dict__.items() if name not in native}

    # --- helpers -----------------------------------------------------------------------------------------------------

    @cached_property
    def _native(self) -> list[_C.Histogram]:
        return [_native(counts, moments) for counts, moments in zip(self.counts, self.moments, strict=True)]

    @cached_property
    def _merged(self) -> _C.Histogram:
        return _native(self.counts.sum(0), self.moments.sum(0))

    def _pooled(self, question: str, hardness: Hardness, *arguments: float) -> float:
        values = self._hardness(hardness)
        if len(values) == 1:
            return self._ask(getattr(self._merged, question), *values, *arguments)
        return self._ask(getattr(_C, f"pooled_{question}"), self._native, values, *arguments)

    def _hardness(self, hardness: Hardness) -> list[float]:
        if isinstance(hardness, Tensor):
            plain: Any = hardness.detach().flatten().tolist()
        else:
            plain = hardness.tolist() if hasattr(hardness, "tolist") else hardness  # of numpy
        values = list(plain) if isinstance(plain, (list, tuple)) else [plain]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"hardness must be a float, or floats for all channels, got {type(value).__name__}")
        if len(values) not in {1, self.num_channels}:
            whole = "" if self.channel_dim is not None else '; observe(per="channel") has one for each channel'
            raise ValueError(
                f"{self._label}hardness has {len(values)} values, but the histogram {self.num_channels} "
                f"channel{'s' * (self.num_channels != 1)}{whole}"
            )
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise ValueError(f"{self._label}hardness must be finite and positive, got {hardness}")
        return [float(value) for value in values]

    def _ask(self, question: Callable[..., float], *arguments: Any) -> float:
        """The answer of C++, whose errors do not know the name of the site."""
        try:
            return question(*arguments)
        except ValueError as error:
            raise ValueError(f"{self._label}{error}") from None

    @property
    def _label(self) -> str:
        return "" if self.name is None else f"{self.name}: "

    def _channel_name(self, index: int) -> str | None:
        return self.name if self.name is None or self.num_channels == 1 else f"{self.name}, channel {index}"


def empty_tables(channels: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Counts and moments of nothing; what a forward adds to must be no inference tensor."""
    with torch.inference_mode(False):
        counts = torch.zeros(channels, BINS, dtype=torch.int64, device=device)
        return counts, torch.zeros(channels, MOMENTS, dtype=torch.float64, device=device)


def check_channel_dim(channel_dim: int | None, x: Tensor) -> None:
    """Raises where x has no such dimension."""
    if channel_dim is None:
        return
    check_int("channel_dim", channel_dim)
    if not -x.dim() <= channel_dim < x.dim():
        raise ValueError(f"channel_dim {channel_dim} is out of range for activations of shape {tuple(x.shape)}")


def _native(counts: Tensor, moments: Tensor) -> _C.Histogram:
    total, squares, relu_squares, nonfinite = moments.tolist()
    return _C.Histogram(counts.tolist(), total, squares, relu_squares, int(nonfinite))


def _check_table(name: str, table: Any, dtype: torch.dtype, columns: int) -> None:
    if not isinstance(table, Tensor) or table.dtype != dtype or table.dim() != 2 or table.size(1) != columns:
        got = f"{table.dtype} of shape {tuple(table.shape)}" if isinstance(table, Tensor) else type(table).__name__
        raise ValueError(f"{name} must be {dtype} of shape (channels, {columns}), got {got}")
