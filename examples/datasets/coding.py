"""The lossless coding of the CIFAR-10 files ``train_1.npz`` to ``train_5.npz`` and ``test.npz``.

An image is three planes, G, R − G and B − G. A pixel is predicted from its neighbours to the left and above (the
median predictor of JPEG-LS); the residuals are written to one of 16 arrays per plane, by how much the neighbours differ
("activity"), so that deflate finds similar values together. An array goes through the pixel positions row by row,
and at each position through the images.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = (2, 4, 6, 9, 12, 16, 21, 27, 34, 43, 54, 69, 90, 122, 175)
GROUPS = len(THRESHOLDS) + 1
SIDE = 32

Plane = NDArray[np.int16]  # (rows, columns, images): a position is contiguous

# Differences of values in ±255, four of them doubled in range by the errors: the sum stays below this.
_MOST_ACTIVE = 8 * 1024
_GROUP_OF = np.searchsorted(THRESHOLDS, np.arange(_MOST_ACTIVE), side="right").astype(np.uint8)
_RESIDUAL_OF = np.array([v // 2 if v % 2 == 0 else -(v + 1) // 2 for v in range(256)], np.int16)


def decode(arrays: Mapping[str, NDArray[np.uint8]], images: int) -> NDArray[np.uint8]:
    """The pixels of one file, (images, 32, 32, 3).

    Args:
        arrays: ``p0q00`` to ``p2q15``: plane and group.

    Raises:
        ValueError: if the arrays are not used up exactly.
    """
    green = _decode_plane(arrays, 0, None, images)
    pixels = np.empty((images, SIDE, SIDE, 3), np.uint8)
    pixels[..., 1] = green.transpose(2, 0, 1)
    for channel, plane in ((0, 1), (2, 2)):
        pixels[..., channel] = (_decode_plane(arrays, plane, green, images) + green).transpose(2, 0, 1)
    return pixels


def _decode_plane(arrays: Mapping[str, NDArray[np.uint8]], plane: int, base: Plane | None, images: int) -> Plane:
    streams = [arrays[f"p{plane}q{group:02d}"] for group in range(GROUPS)]
    position = [0] * GROUPS
    pixels = np.empty((SIDE, SIDE, images), np.int16)
    errors = np.empty((SIDE, SIDE, images), np.int16)
    symbols = np.empty(images, np.uint8)
    for y in range(SIDE):
        for x in range(SIDE):
            predicted, activity = predict(pixels, errors, y, x, 128 if base is None else 0)
            group = _GROUP_OF[activity]
            # The images of each group, in their order: they take the next symbols of its array.
            order = np.argsort(group, kind="stable")
            ends = [0, *np.bincount(group, minlength=GROUPS).cumsum().tolist()]
            taken = [streams[q][position[q] : position[q] + ends[q + 1] - ends[q]] for q in range(GROUPS)]
            for q in range(GROUPS):
                position[q] += ends[q + 1] - ends[q]
            symbols[order] = np.concatenate(taken)
            value = predicted + _RESIDUAL_OF[symbols]
            if base is None:
                value &= 255
            else:
                value = ((value + base[y, x]) & 255) - base[y, x]
            pixels[y, x] = value
            np.abs(value - predicted, out=errors[y, x])
    if position != [len(stream) for stream in streams]:
        raise ValueError(f"plane {plane} uses {position} symbols of its arrays, which hold {[*map(len, streams)]}")
    return pixels


def predict(pixels: Plane, errors: Plane, y: int, x: int, first: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The predictions at one position and the activity beside it, from what comes before the position.

    Args:
        errors: |pixel − prediction| of the same positions.
        first: what the first pixel is predicted to be.
    """
    images = pixels.shape[2]
    start, zero = np.full(images, first, np.int16), np.zeros(images, np.int16)
    above, above_errors = pixels[y - 1], errors[y - 1]
    west = pixels[y, x - 1] if x else above[0] if y else start
    north = above[x] if y else west
    north_west = above[x - 1] if x and y else north
    north_east = above[x + 1] if x < SIDE - 1 and y else north
    west_error = errors[y, x - 1] if x else above_errors[0] if y else zero
    north_error = above_errors[x] if y else west_error
    north_east_error = above_errors[x + 1] if x < SIDE - 1 and y else north_error
    north_west_error = above_errors[x - 1] if x and y else north_error

    activity = np.abs(west - north_west) + np.abs(north - north_west) + np.abs(north - north_east)
    activity += west_error + north_error + north_east_error + north_west_error
    low, high = np.minimum(west, north), np.maximum(west, north)
    # The median of W, N and W + N − NW.
    return np.clip(west + north - north_west, low, high), activity
