"""Paired timing: two statements in turn, so that their ratio holds while the machine's speed drifts."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from torch.utils.benchmark import Timer

Call = Callable[[], object]


@dataclass
class Pair:
    """Medians in seconds per call, and the median over pairs of other / ours: above 1 we are faster."""

    ours: float
    other: float
    speedup: float
    pairs: int


def paired(ours: Call, other: Call, *, threads: int = 1, pairs: int = 15, seconds: float = 0.05) -> Pair:
    """Times `ours` and `other` alternately, each for about `seconds` a turn, `pairs` times."""
    timers = [Timer("call()", globals={"call": call}, num_threads=threads) for call in (ours, other)]
    repeats = []
    for timer in timers:
        timer.timeit(3)  # warm up
        repeats.append(max(1, round(seconds / max(timer.timeit(3).mean, 1e-9))))
    times: list[tuple[float, float]] = []
    for _ in range(pairs):
        ours_time, other_time = (timer.timeit(n).mean for timer, n in zip(timers, repeats, strict=True))
        times.append((ours_time, other_time))
    return Pair(
        ours=statistics.median(a for a, _ in times),
        other=statistics.median(b for _, b in times),
        speedup=statistics.median(b / a for a, b in times),
        pairs=pairs,
    )
