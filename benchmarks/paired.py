"""Paired timing: statements in turn, so that their ratios hold while the machine's speed drifts."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
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


def in_turn(
    calls: Sequence[Call], *, budget: float, turn: float = 0.05, rounds: tuple[int, int] = (7, 61)
) -> list[list[float]]:
    """Seconds per call of several calls, for each a list over rounds; every second round in the reverse order.

    What takes long is not called more often than it must be, as :class:`Timer` would for its warm-up.

    Args:
        budget: seconds that the rounds may take together, within the fewest and the most of `rounds`.
        turn: seconds, at least, that one call's turn of a round takes.
    """
    for call in calls:
        _seconds_per_call(call, 1)
    estimates = [_seconds_per_call(call, 1) for call in calls]
    repeats = [max(1, round(turn / estimate)) for estimate in estimates]
    round_seconds = sum(estimate * (count + (count > 1)) for estimate, count in zip(estimates, repeats, strict=True))
    fewest, most = rounds
    times: list[list[float]] = [[] for _ in calls]
    for number in range(min(most, max(fewest, round(budget / round_seconds)))):
        for index in range(len(calls))[:: 1 if number % 2 == 0 else -1]:
            if repeats[index] > 1:
                calls[index]()  # finds the caches as its own calls leave them
            times[index].append(_seconds_per_call(calls[index], repeats[index]))
    return times


def _seconds_per_call(call: Call, count: int) -> float:
    _wait_for_device()
    started = time.perf_counter()
    for _ in range(count):
        call()
    _wait_for_device()
    return (time.perf_counter() - started) / count


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def keep_memory() -> bool:
    """Makes the C library keep what is freed, where it is glibc; returns whether it does.

    Otherwise it gives the gradients of large layers back to the system in every step and takes them again, page by
    page: more or fewer of them by what lies behind them in memory, which differs from network to network.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    return bool(mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**31 - 1))
