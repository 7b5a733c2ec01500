"""The networks: an MLP, a ResNet, a GPT and a vision transformer, written plainly.

Every network asks a function ``activation(channels, channel_dim)`` for the module of each of its sites, one module per
site, in order of depth. The weights come from torch's global generator; the activations draw nothing from it, so that
the same seed gives the same weights whatever the activation is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .system import Activation


def mlp(activation: Activation, inputs: int, classes: int, width: int = 256, depth: int = 4) -> nn.Sequential:
    """`depth` hidden layers of `width` units. (N, inputs) float -> (N, classes)."""
    layers: list[nn.Module] = []
    for fan_in in (inputs, *[width] * (depth - 1)):
        layers += [nn.Linear(fan_in, width), activation(width, 1)]
    return nn.Sequential(*layers, nn.Linear(width, classes))


# --- ResNet -----------------------------------------------------------------------------------------------------------


def _conv(inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them. Each of its two activations is a site of its own."""

    def __init__(self, activation: Activation, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.activation1 = activation(outputs, 1)
        self.conv2, self.norm2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.activation2 = activation(outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.activation1(self.norm1(self.conv1(x)))))
        return self.activation2(y + self.shortcut(x))


class ResNet(nn.Module):
    """He et al., arXiv 1512.03385, with the stem for small images: one 3x3 convolution and no pooling.

    Stage i has ``blocks[i]`` basic blocks of ``width * 2**i`` channels. (N, 3, H, W) float -> (N, classes).

    Args:
        blocks: per stage. Default (2, 2, 2, 2): ResNet-18, with 17 sites.
    """

    def __init__(
        self, activation: Activation, classes: int, blocks: Sequence[int] = (2, 2, 2, 2), width: int = 64
    ) -> None:
        super().__init__()
        self.conv, self.norm = _conv(3, width, 3), nn.BatchNorm2d(width)
        self.activation = activation(width, 1)
        stages, inputs = [], width
        for index, count in enumerate(blocks):
            outputs = width * 2**index
            for block in range(count):
                stride = 2 if index > 0 and block == 0 else 1
                stages.append(BasicBlock(activation, inputs, outputs, stride))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.activation(self.norm(self.conv(x))))
        return self.head(x.mean((2, 3)))


# --- transformers -----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, causal: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm block; its MLP is four times as wide and holds the site."""

    def __init__(self, activation: Activation, width: int, heads: int, *, causal: bool, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal, dropout=dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), activation(4 * width, 2), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


def _blocks(
    activation: Activation, width: int, heads: int, *, layers: int, causal: bool, dropout: float
) -> nn.Sequential:
    """The blocks, initialized as GPT-2's.

    What a block adds to the stream is scaled by 1/√(2·layers): the variance of the stream does not grow with depth.
    """
    blocks = nn.Sequential(*(Block(activation, width, heads, causal=causal, dropout=dropout) for _ in range(layers)))
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    for block in blocks:
        for last in (block.attention.out, block.mlp[2]):
            nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * layers))
    return blocks


class GPT(nn.Module):
    """GPT-2's decoder: learned positions, pre-norm blocks, the embedding of the tokens is the output layer too.

    (N, T) int64 with T <= context -> (N, T, vocabulary). One site per block.
    """

    def __init__(
        self,
        activation: Activation,
        vocabulary: int,
        *,
        context: int = 1024,
        width: int = 768,
        heads: int = 12,
        layers: int = 12,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.empty(context, width))
        for weight in (self.embedding.weight, self.position):
            nn.init.normal_(weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = _blocks(activation, width, heads, layers=layers, causal=True, dropout=dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.embedding(x) + self.position[: x.shape[1]])
        return F.linear(self.norm(self.blocks(x)), self.embedding.weight)


class VisionTransformer(nn.Module):
    """DeiT-Tiny by default (arXiv 2012.12877), without a teacher: square patches, a class token, pre-norm blocks.

    (N, 3, size, size) float -> (N, classes). One site per block.
    """

    def __init__(
        self,
        activation: Activation,
        classes: int,
        *,
        size: int = 224,
        patch: int = 16,
        width: int = 192,
        heads: int = 3,
        layers: int = 12,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1 + (size // patch) ** 2, width))
        for weight in (self.token, self.position):
            nn.init.normal_(weight, std=0.02)
        self.blocks = _blocks(activation, width, heads, layers=layers, causal=False, dropout=0.0)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(patches), -1, -1), patches], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])
