"""examples/paper: the networks against the published ones, and what every system makes of its data."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from examples.datasets import adult, cifar, fashion_mnist, tiny_imagenet, wikitext_2
from examples.datasets.splits import Labelled, Text
from examples.paper import networks
from examples.paper.systems import SYSTEMS
from examples.paper.systems.images import Pixels
from examples.paper.systems.splits import spread, windows
from lambda_gelu import LambdaGELU, find_sites

# As published: ResNet-18 in torchvision, with 1000 classes and a stem of 7x7 where there are 10 and 3x3 here; GPT-2 in
# transformers; deit_tiny_patch16_224 in timm.
RESNET_18 = 11_689_512 - 990 * 513 - 64 * 3 * (49 - 9)
GPT_2 = 124_439_808
DEIT_TINY = 5_717_416


def gelu(channels, channel_dim):
    return nn.GELU()


def hardness(channels, channel_dim):
    return LambdaGELU(channels, channel_dim=channel_dim)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "parameters", "sites"),
    [
        (lambda activation: networks.ResNet(activation, 10), RESNET_18, 17),
        (lambda activation: networks.GPT(activation, 50_257), GPT_2, 12),
        (lambda activation: networks.VisionTransformer(activation, 1000), DEIT_TINY, 12),
        (lambda activation: networks.mlp(activation, 108, 2), 108 * 256 + 3 * 256 * 256 + 256 * 2 + 4 * 256 + 2, 4),
    ],
    ids=["ResNet-18", "GPT-2", "DeiT-Tiny", "MLP"],
)
def test_networks_have_the_size_and_the_sites_of_the_paper(network, parameters, sites):
    found = []

    def activation(channels, channel_dim):
        found.append(nn.GELU())
        return found[-1]

    with torch.device("meta"):
        made = network(activation)
    assert count(made) == parameters
    assert [module for module in made.modules() if isinstance(module, nn.GELU)] == found
    assert len(found) == sites


def test_every_site_of_a_resnet_is_used_once_in_the_order_of_its_registration():
    network = networks.ResNet(hardness, 10, (1, 2), width=4)
    called = []
    for name, site in find_sites(network).items():
        site.register_forward_hook(lambda *_, name=name: called.append(name))
    network(torch.randn(2, 3, 8, 8))
    assert called == list(find_sites(network))


def test_a_resnet_halves_its_images_at_every_stage_but_the_first():
    network = networks.ResNet(gelu, 10, (2, 2, 2), width=4)
    shapes = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    network(torch.randn(2, 3, 16, 16))
    assert shapes == [(4, 16, 16)] * 2 + [(8, 8, 8)] * 2 + [(16, 4, 4)] * 2


def test_later_tokens_do_not_change_what_a_gpt_says_before():
    network = small_gpt().eval()
    tokens = torch.randint(50, (2, 16))
    changed = tokens.clone()
    changed[:, 9] = (tokens[:, 9] + 1) % 50
    before, after = network(tokens), network(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).flatten(2).any(-1).all()


def test_every_patch_of_an_image_changes_what_a_vision_transformer_says():
    network = networks.VisionTransformer(gelu, 5, size=16, patch=8, width=8, heads=2, layers=2).eval()
    image = torch.randn(1, 3, 16, 16)
    for row, column in [(0, 0), (0, 15), (15, 0), (15, 15)]:
        changed = image.clone()
        changed[0, 0, row, column] += 1
        assert not torch.equal(network(image), network(changed))


def test_what_the_blocks_of_a_gpt_add_up_to_does_not_grow_with_their_number():
    torch.manual_seed(0)
    sizes = []
    for layers in (2, 8):
        network = networks.GPT(gelu, 50, context=16, width=64, heads=4, layers=layers, dropout=0.0)
        stream = torch.randn(4, 16, 64)
        sizes.append((network.blocks(stream) - stream).std().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.15)


def small_gpt():
    return networks.GPT(gelu, 50, context=16, width=16, heads=2, layers=2)


# --- splits and windows -----------------------------------------------------------------------------------------------


def test_a_part_of_a_sorted_split_holds_every_class_equally_often():
    y = torch.arange(1000) // 100
    x, labels = spread((torch.arange(1000), y), 50)
    assert torch.equal(labels.bincount(), torch.full((10,), 5))
    assert torch.equal(y[x], labels)


@pytest.mark.parametrize("count", [10, 11, 1000])
def test_a_part_is_never_more_than_there_is(count):
    split = torch.arange(10), torch.arange(10)
    assert spread(split, count) is split


@pytest.mark.parametrize(("length", "expected"), [(13, 3), (12, 2), (4, 0)])
def test_windows_hold_every_token_with_the_one_after_it(length, expected):
    tokens = torch.arange(length)
    x, y = windows(tokens, 4)
    assert x.shape == y.shape == (expected, 4)
    assert torch.equal(x.flatten(), tokens[: 4 * expected])
    assert torch.equal(y, x + 1)


# --- pixels -----------------------------------------------------------------------------------------------------------

PIXELS = Pixels((10.0, 20.0, 30.0), (1.0, 2.0, 4.0), shift=2)


def test_pixels_are_standardized_per_channel():
    x = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    found = PIXELS(x, None)
    for channel, (mean, deviation) in enumerate([(10, 1), (20, 2), (30, 4)]):
        assert torch.equal(found[:, channel], (x[:, channel].float() - mean) / deviation)


def test_every_augmented_image_is_a_shift_of_the_image_mirrored_or_not():
    x = torch.randint(1, 256, (64, 3, 6, 6), dtype=torch.uint8)
    plain = Pixels((0.0,) * 3, (1.0,) * 3, shift=2)
    seen = set()
    for image, found in zip(x, plain(x, torch.Generator().manual_seed(0)), strict=True):
        padded = nn.functional.pad(image, [2] * 4)
        shifts = {
            (down, right, mirrored): padded[:, down : down + 6, right : right + 6].flip([-1] if mirrored else [])
            for down in range(5)
            for right in range(5)
            for mirrored in (False, True)
        }
        matches = [how for how, candidate in shifts.items() if torch.equal(candidate.float(), found)]
        assert len(matches) == 1
        seen.update(matches)
    assert {down for down, _, _ in seen} == {right for _, right, _ in seen} == set(range(5))
    assert {mirrored for _, _, mirrored in seen} == {False, True}
    assert any(down != right for down, right, _ in seen)


@pytest.mark.parametrize("size", [None, 28])
def test_augmentation_keeps_the_shape_and_is_the_same_for_the_same_seed(size):
    pixels = dataclasses.replace(PIXELS, size=size)
    x = torch.randint(256, (16, 3, 14, 14), dtype=torch.uint8)
    before = x.clone()
    first, again, other = (pixels(x, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert first.shape == pixels(x, None).shape == (16, 3, size or 14, size or 14)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, before)


# --- systems ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(monkeypatch):
    """Readers that give noise in the shapes of the real data, so that no file is needed."""

    def labelled(shape, classes, dtype=torch.float32):
        def part(size):
            x = torch.randint(256, (size, *shape)).to(dtype)
            return x, torch.arange(size) * classes // size

        return lambda folder, **options: Labelled(part(2000), part(1000), part(1000))

    def text(dtype, vocabulary):
        def load(folder, download=False, **options):
            size = options.get("vocabulary") or vocabulary
            parts = (torch.randint(size, (length,)).to(dtype) for length in (9000, 5000, 5000))
            return Text(*parts, size)

        return load

    monkeypatch.setattr(adult, "load", labelled((108,), 2))
    monkeypatch.setattr(fashion_mnist, "load", labelled((784,), 10))
    monkeypatch.setattr(cifar, "load_10", labelled((3, 32, 32), 10, torch.uint8))
    monkeypatch.setattr(cifar, "load_100", labelled((3, 32, 32), 100, torch.uint8))
    monkeypatch.setattr(tiny_imagenet, "load", labelled((3, 64, 64), 200, torch.uint8))
    monkeypatch.setattr(wikitext_2, "load_bytes", text(torch.uint8, 256))
    monkeypatch.setattr(wikitext_2, "load_words", text(torch.int32, 33_278))


CLASSES = {"Adult": 2, "FMNIST": 10, "CIFAR-10": 10, "CIFAR-100": 100, "TinyImageNet": 200}
OUTPUTS = {"tinyimagenet20": 20, "bytes": 256, "words4k": 4096, "words": 33_278}
SMALL = [name for name, system in SYSTEMS.items() if system.row in ("Adult", "FMNIST") or not system.full_size]


def test_every_row_of_the_paper_has_a_system_of_its_size_and_one_that_two_cores_can_train():
    rows = {"Adult", "FMNIST", "CIFAR-10", "CIFAR-100", "TinyImageNet", "WikiText-2"}
    assert {system.row for system in SYSTEMS.values() if system.full_size} == rows
    assert {SYSTEMS[name].row for name in SMALL} == rows
    assert all(name == system.name for name, system in SYSTEMS.items())


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_gives_its_network_what_its_reader_gives(name, published, tmp_path):
    system = SYSTEMS[name]
    data = system.load(tmp_path, False)
    with torch.device("meta"):
        network = system.network(hardness)  # full-size networks are too large to run here, their shapes are not
    x, y = system.batch(data.train, slice(0, 2), "cpu", torch.Generator().manual_seed(0))
    logits = network(x.to("meta"))
    outputs = OUTPUTS.get(name.split("-")[-1]) or CLASSES[system.row]
    assert logits.shape == (*y.shape, outputs)
    assert y.dtype == torch.int64
    assert y.max() < outputs
    assert [site.num_parameters for site in find_sites(network).values()] == widths(network)


def widths(network):
    """The channels of every site, from the layer before it."""
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Linear, nn.BatchNorm2d, LambdaGELU))]
    if isinstance(network, networks.ResNet):
        found = [network.conv.out_channels]
        return found + [block.conv2.out_channels for block in network.blocks for _ in range(2)]
    return [before.out_features for before, layer in itertools.pairwise(layers) if isinstance(layer, LambdaGELU)]


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_measures_the_sites_is_part_of_what_is_trained_on(name, published, tmp_path):
    data = SYSTEMS[name].load(tmp_path, False)
    train = {tuple(x.flatten().tolist()) for x in data.train[0][:, ..., :4]}
    assert len(data.calibration[0]) > 0
    assert all(tuple(x.flatten().tolist()) in train for x in data.calibration[0][:, ..., :4])


@pytest.mark.parametrize("name", SMALL)
def test_every_activation_starts_from_the_same_weights(name):
    def weights(activation):
        torch.manual_seed(5)
        network = SYSTEMS[name].network(activation)
        return {key: value for key, value in network.named_parameters() if "raw_hardness" not in key}

    first = weights(gelu)
    for activation in (lambda channels, channel_dim: nn.ReLU(), hardness, lambda *_: LambdaGELU(init_hardness=1.5)):
        other = weights(activation)
        assert other.keys() == first.keys()
        assert all(torch.equal(other[key], first[key]) for key in first)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_system_trains_a_step_with_a_hardness_per_channel(name, published, tmp_path):
    system = SYSTEMS[name]
    data = system.load(tmp_path, False)
    torch.manual_seed(0)
    network = system.network(hardness)
    optimizer = system.make_optimizer(network, system.lr_multiplier)
    before = {key: site.hardness.clone() for key, site in find_sites(network).items()}
    x, y = system.batch(data.train, slice(0, 8), "cpu")
    system.loss(network(x), y).backward()
    optimizer.step()
    for key, site in find_sites(network).items():
        assert (site.hardness != before[key]).any(), key
    assert all(parameter.isfinite().all() for parameter in network.parameters())
