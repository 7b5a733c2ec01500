"""Wikipedia articles, GPTs from scratch. The settings are ours, the paper's are not known.

Nor is what its tokens are, or whether its GPT-2 started from OpenAI's weights; here every one starts from random ones.
An epoch of the small systems is a tenth of the run, not all of the text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.datasets import Text, wikitext_2

from ..networks import GPT
from ..system import Data, System
from .splits import spread, windows


def as_tokens(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return x.long()


def _data(text: Text, context: int, scored: int | None) -> Data:
    """`scored`: tokens of the held-out text that every epoch looks at. Default: all."""
    train, held_out, test = (windows(tokens, context) for tokens in (text.train, text.held_out, text.test))
    calibration = spread(train, max(1, 4096 // context))
    if scored is not None:
        held_out, test = spread(held_out, scored // context), spread(test, 4 * scored // context)
    return Data(train, held_out, calibration, test)


def _bytes(context: int, scored: int | None) -> Callable[[Path, bool], Data]:
    return lambda folder, download: _data(wikitext_2.load_bytes(folder, download=download), context, scored)


def _words(vocabulary: int | None, context: int, scored: int | None) -> Callable[[Path, bool], Data]:
    return lambda folder, download: _data(
        wikitext_2.load_words(folder, vocabulary=vocabulary, download=download), context, scored
    )


_COMMON: dict[str, Any] = {
    "row": "WikiText-2",
    "metric_name": "perplexity",
    "epochs": 10,
    "optimizer": "AdamW",
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "clip": 1.0,
    "final_rate": 0.1,
    "prepare": as_tokens,
}
_SMALL: dict[str, Any] = _COMMON | {"full_size": False, "lr": 2e-3, "warmup_epochs": 0.5, "score_batch": 64}
_FULL: dict[str, Any] = _COMMON | {
    "full_size": True,
    "lr": 3e-4,
    "warmup_epochs": 0.5,
    "batch_size": 8,
    "score_batch": 4,
}

GPT4X128_BYTES = System(
    name="gpt4x128-bytes",
    title="WikiText-2 in bytes, GPT 4 × 128",
    load=_bytes(64, 16_384),
    network=lambda activation: GPT(activation, 256, context=64, width=128, heads=4, layers=4, dropout=0.0),
    batch_size=16,
    steps_per_epoch=160,
    **_SMALL,
)
GPT4X128_WORDS4K = System(
    name="gpt4x128-words4k",
    title="WikiText-2 in its 4096 most frequent words, GPT 4 × 128",
    load=_words(4096, 64, 8192),
    network=lambda activation: GPT(activation, 4096, context=64, width=128, heads=4, layers=4, dropout=0.0),
    batch_size=16,
    steps_per_epoch=110,
    **_SMALL,
)
GPT2_BYTES = System(
    name="gpt2-bytes",
    title="WikiText-2 in bytes, GPT-2",
    load=_bytes(1024, None),
    network=lambda activation: GPT(activation, 256),
    **_FULL,
)
GPT2_WORDS = System(
    name="gpt2-words",
    title="WikiText-2 in words, GPT-2",
    load=_words(None, 1024, None),
    network=lambda activation: GPT(activation, 33_278),
    **_FULL,
)
