"""Pixels as a network is given them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Pixels:
    """uint8 (N, 3, H, W) into float32 of mean 0 and deviation 1 per channel.

    For training every image is shifted by up to `shift` pixels in both directions, with black beyond its edge, and
    mirrored or not.

    Attributes:
        mean, deviation: of the training data, per channel, for pixels between 0 and 255.
        size: H and W of the result. Default None: as stored.
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    shift: int
    size: int | None = None

    def __call__(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is not None:
            x = _mirrored(_shifted(x, self.shift, generator), generator)
        mean, deviation = (
            torch.tensor(values, device=x.device).view(3, 1, 1) for values in (self.mean, self.deviation)
        )
        x = (x.float() - mean) / deviation
        return x if self.size is None else F.interpolate(x, size=self.size, mode="bilinear", antialias=False)


def _shifted(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    count, _, height, width = x.shape
    # Drawn on the generator's device: the same images on every device.
    by = torch.randint(2 * shift + 1, (2, count, 1), generator=generator, device=generator.device).to(x.device)
    rows = by[0] + torch.arange(height, device=x.device)
    columns = by[1] + torch.arange(width, device=x.device)
    # Channels last: what an index copies is then a whole pixel.
    padded = F.pad(x, [shift] * 4).permute(0, 2, 3, 1)
    images = torch.arange(count, device=x.device).view(-1, 1, 1)
    return padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    mirror = torch.rand(len(x), generator=generator, device=generator.device).to(x.device) < 0.5
    return torch.where(mirror.view(-1, 1, 1, 1), x.flip(-1), x)
