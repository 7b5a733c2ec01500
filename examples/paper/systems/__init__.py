"""The systems by name: the paper's, and for each that does not fit two CPU cores a smaller one."""

from __future__ import annotations

from ..system import System
from . import adult, cifar, fashion_mnist, tiny_imagenet, wikitext_2

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        adult.ADULT,
        fashion_mnist.FASHION_MNIST,
        cifar.RESNET8_CIFAR10,
        cifar.RESNET18_CIFAR10,
        cifar.RESNET8_CIFAR100,
        cifar.RESNET18_CIFAR100,
        tiny_imagenet.VIT4X96_TINYIMAGENET20,
        tiny_imagenet.DEIT_TINY_TINYIMAGENET,
        wikitext_2.GPT4X128_BYTES,
        wikitext_2.GPT4X128_WORDS4K,
        wikitext_2.GPT2_BYTES,
        wikitext_2.GPT2_WORDS,
    )
}
