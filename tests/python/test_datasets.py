"""examples/datasets: the facts that are published about the sets, and what is refused."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import lzma
import os
import socket
import struct
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.datasets import (
    CorruptDataError,
    Labelled,
    MissingDataError,
    adult,
    cifar,
    coding,
    data_dir,
    digits,
    fashion_mnist,
    files,
    tiny_imagenet,
    wikitext_2,
)
from examples.datasets.splits import hold_out_

DATA = data_dir()


def needs(folder):
    return pytest.mark.skipif(
        not (DATA / folder).is_dir(), reason=f"no {folder} in {DATA}: LAMBDA_GELU_DATA names the folder"
    )


def of(algorithm: str, content: bytes) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "lambda-gelu"


# --- the published files ----------------------------------------------------------------------------------------------


@needs("adult")
def test_adult_has_the_published_rows_and_labels_and_missing_values():
    table = adult.load(DATA)
    assert [part[0].shape for part in (table.train, table.held_out, table.test)] == [
        (29_305, 108),
        (3_256, 108),
        (16_281, 108),
    ]
    x, y = (torch.cat(pair) for pair in zip(table.train, table.held_out, strict=True))
    assert y.sum() == 7_841 and table.test[1].sum() == 3_846
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    # Six numbers, then groups of 9, 16, 7, 15, 6, 5, 2 and 42 columns; "?" comes before all letters.
    groups = x[:, 6:].split([9, 16, 7, 15, 6, 5, 2, 42], dim=1)
    assert all(torch.equal(group.sum(1), torch.ones(len(x))) for group in groups)
    assert all(torch.equal(group, group.round()) for group in groups)
    missing = [6, 38, 66]  # workclass, occupation, native-country
    assert x[:, missing].sum(0).tolist() == [1836, 1843, 583]
    assert table.test[0][:, missing].sum(0).tolist() == [963, 966, 274]


@needs("adult")
def test_adults_numbers_are_standardized_over_the_rows_that_are_trained_on():
    table = adult.load(DATA)
    numbers = table.train[0][:, :6].double()
    torch.testing.assert_close(numbers.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(numbers.std(0, correction=0), torch.ones(6, dtype=torch.float64), atol=1e-6, rtol=0)
    # Every tenth row is held out, beginning with the tenth.
    lines = files.read(DATA / "adult", adult.FILES[0]).decode().split("\n")
    out = [line.split(", ") for line in lines if line][9::10]
    assert [row[-1] == ">50K" for row in out] == table.held_out[1].bool().tolist()
    # Standardizing keeps what a line through two points says: gaps of ages, and of logarithms of gains.
    for column, values in (
        (0, [float(row[0]) for row in out]),
        (3, [np.log1p(float(row[10])) for row in out]),
    ):
        found = table.held_out[0][:, column].double()
        expected = torch.tensor(values, dtype=torch.float64)
        low, high = expected.argmin(), expected.argmax()
        slope = (found[high] - found[low]) / (expected[high] - expected[low])
        torch.testing.assert_close(found, found[low] + slope * (expected - expected[low]), atol=1e-5, rtol=0)


@needs("fashion-mnist")
def test_fashion_mnist_has_the_published_images_and_pixels():
    images = fashion_mnist.load(DATA)
    assert [part[0].shape for part in (images.train, images.held_out, images.test)] == [
        (55_000, 784),
        (5_000, 784),
        (10_000, 784),
    ]
    assert images.train[1][:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert images.test[1][:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert torch.cat([images.train[1], images.held_out[1]]).bincount().tolist() == [6000] * 10
    assert images.test[1].bincount().tolist() == [1000] * 10
    train = torch.cat([images.train[0], images.held_out[0]])
    for x, mean, deviation in ((train, 0.286041, 0.353024), (images.test[0], 0.286849, 0.352444)):
        pixels = x.double() * 0.353 + 0.286
        assert pixels.mean().item() == pytest.approx(mean, abs=1e-6)
        assert pixels.std().item() == pytest.approx(deviation, abs=1e-6)


@needs("wikitext-2")
def test_wikitext_2_as_bytes_is_the_published_text():
    text = wikitext_2.load_bytes(DATA)
    parts = (text.train, text.held_out, text.test)
    assert text.vocabulary == 256 and all(part.dtype == torch.uint8 for part in parts)
    assert [len(part) for part in parts] == [10_797_148, 1_121_681, 1_256_449]
    assert [int((part == 10).sum()) for part in parts] == [36_718, 3_760, 4_358]


@needs("wikitext-2")
def test_wikitext_2_as_words_has_the_published_counts():
    text = wikitext_2.load_words(DATA)
    parts = (text.train, text.held_out, text.test)
    assert text.vocabulary == 33_278 and all(part.dtype == torch.int32 for part in parts)
    assert [len(part) for part in parts] == [2_088_628, 217_646, 245_569]
    assert [int((part == 0).sum()) for part in parts] == [54_625, 11_718, 15_218]  # <unk>
    assert [len(part.unique()) for part in parts] == [33_278, 13_777, 14_143]
    # The most frequent come first, so 4,096 words are the same numbers, and <unk> beyond.
    few = wikitext_2.load_words(DATA, 4096)
    assert few.vocabulary == 4096
    assert torch.equal(few.test, torch.where(text.test < 4096, text.test, 0))
    counts = text.train.bincount()[1:]
    assert bool((counts[:-1] >= counts[1:]).all())


@needs("cifar-10")
def test_cifar_10_has_the_published_pixels_and_labels(cache_of_its_own, monkeypatch):
    images = cifar.load_10(DATA)
    parts = (images.train, images.held_out, images.test)
    assert [part[0].shape for part in parts] == [(count, 3, 32, 32) for count in (45_000, 5_000, 10_000)]
    assert [part[1].bincount().tolist() for part in parts] == [[4500] * 10, [500] * 10, [1000] * 10]
    assert all(x.dtype == torch.uint8 and x.is_contiguous() for x, _ in parts)
    published = (
        (parts[:2], (125.30691805, 122.95039414, 113.86538318), (62.99321928, 62.08870764, 66.70489964)),
        (parts[2:], (126.02464141, 123.70850420, 114.85431865), (62.89639135, 61.93752718, 66.70605640)),
    )
    for splits, means, deviations in published:
        values = torch.arange(256, dtype=torch.float64)
        for channel, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
            counts = sum(x[:, channel].flatten().bincount(minlength=256) for x, _ in splits).double()
            found = (counts @ values / counts.sum()).item()
            assert found == pytest.approx(mean, abs=1e-8)
            assert (counts @ (values - found) ** 2 / counts.sum()).sqrt().item() == pytest.approx(deviation, abs=1e-8)

    assert len(list(cache_of_its_own.iterdir())) == 6
    monkeypatch.setattr(coding, "decode", None)  # the kept pixels are used
    fewer = cifar.load_10(DATA, parts=2)
    assert torch.equal(fewer.train[0], images.train[0][:18_000]) and torch.equal(fewer.test[0], images.test[0])
    assert torch.equal(fewer.held_out[0], images.held_out[0][:2_000])


def test_the_digits_are_standardized_and_split_in_turn():
    pytest.importorskip("sklearn", reason="it brings the digits")
    images = digits.load()
    assert images.train[0].shape == (899, 64) and images.test[0].shape == (898, 64)
    assert images.train[0].min() == -1 and images.train[0].max() == 1
    assert images.train[1][:5].tolist() == [0, 2, 4, 6, 8] and images.test[1][:5].tolist() == [1, 3, 5, 7, 9]


def test_a_folder_that_is_given_comes_before_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("LAMBDA_GELU_DATA", str(tmp_path))
    assert data_dir() == tmp_path and data_dir(Path("mine")) == Path("mine")
    monkeypatch.delenv("LAMBDA_GELU_DATA")
    assert data_dir() == Path("data")


# --- missing, altered and damaged files -------------------------------------------------------------------------------

READERS = {
    "adult": (adult.load, "adult/adult.data", adult.FILES[0]),
    "fashion-mnist": (fashion_mnist.load, "fashion-mnist/train-images-idx3-ubyte.gz", fashion_mnist.FILES[0]),
    "bytes": (wikitext_2.load_bytes, "wikitext-2/train.txt", wikitext_2.FILES[0]),
    "words": (wikitext_2.load_words, "wikitext-2/train.txt", wikitext_2.FILES[0]),
    "cifar-10": (cifar.load_10, "cifar-10-binary.tar.gz", cifar.CIFAR_10),
    "cifar-100": (cifar.load_100, "cifar-100-binary.tar.gz", cifar.CIFAR_100),
    "tiny-imagenet": (tiny_imagenet.load, "tiny-imagenet-200.zip", tiny_imagenet.TINY_IMAGENET),
}
each_reader = pytest.mark.parametrize(("load", "name", "published"), READERS.values(), ids=READERS)


@each_reader
def test_a_missing_file_is_named_with_the_flag_and_the_variable(tmp_path, load, name, published):
    with pytest.raises(MissingDataError) as error:
        load(tmp_path)
    path = tmp_path / name
    assert str(error.value) == f"{path} is missing: say --data-dir or set LAMBDA_GELU_DATA, or --download it"


@each_reader
def test_an_altered_file_is_named_with_both_checksums(tmp_path, load, name, published):
    path = (tmp_path / name).with_suffix("") if name.endswith("ubyte.gz") else tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"something else")
    algorithm, expected = published.digest.split(":")
    found = hashlib.new(algorithm, b"something else").hexdigest()
    with pytest.raises(CorruptDataError) as error:
        load(tmp_path)
    assert str(error.value) == f"{path} is not the published file: its {algorithm} is {found}, expected {expected}"


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_compressed_file_is_read_for_what_it_holds(tmp_path, suffix, compress):
    content = b"text" * 1000
    file = files.Published("text.txt", of("sha256", content), "https://example.org/text.txt")
    compressed = tmp_path / f"text.txt{suffix}"
    compressed.write_bytes(compress(content))
    assert files.read(tmp_path, file) == content
    expected = file.digest.split(":")[1]
    for damaged in (compress(content)[:-20], b"no compressed file"):
        compressed.write_bytes(damaged)
        with pytest.raises(CorruptDataError, match=rf"text.txt{suffix} is damaged .*expected {expected}"):
            files.read(tmp_path, file)
    compressed.write_bytes(compress(b"other"))
    found = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(CorruptDataError, match=rf"text.txt is not .* its sha256 is {found}, expected {expected}"):
        files.read(tmp_path, file)


def idx(values: torch.Tensor, kind: int = 8) -> bytes:
    header = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + bytes(values.flatten().int().tolist())


def test_an_idx_file_is_read_as_it_was_written():
    values = torch.arange(2 * 3 * 5).reshape(2, 3, 5).to(torch.uint8)
    assert torch.equal(fashion_mnist.read_idx(idx(values)), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file of unsigned bytes"),
        (b"\1" + idx(torch.zeros(3))[1:], "not an IDX file of unsigned bytes: it starts with 01 00 08 01"),
        (idx(torch.zeros(3), kind=13), "not an IDX file of unsigned bytes"),
        (idx(torch.zeros(3, 4))[:9], "an IDX file of 2 dimensions must hold their sizes in 12 bytes, got 9"),
        (idx(torch.zeros(3))[:-1], r"an IDX file of shape \(3,\) must hold that many bytes, got 2"),
        (idx(torch.zeros(3)) + b"\0", "must hold that many bytes, got 4"),
    ],
)
def test_what_is_no_idx_file_is_refused(content, message):
    with pytest.raises(CorruptDataError, match=message):
        fashion_mnist.read_idx(content)


@pytest.mark.parametrize("parts", [0, 6, 2.5, "all"])
def test_cifar_10_has_five_parts(tmp_path, parts):
    with pytest.raises(ValueError, match=f"parts must be from 1 to 5, the number of training files, got {parts!r}"):
        cifar.load_10(tmp_path, parts=parts)


# --- words ------------------------------------------------------------------------------------------------------------


def test_words_are_numbered_by_frequency_after_the_unknown_word():
    text = " \n = b a = \n a <unk> b c\u2028d \n"
    words = wikitext_2.words(text)
    assert words == ["<eos>", "=", "b", "a", "=", "<eos>", "a", "<unk>", "b", "c", "d", "<eos>"]
    numbers = wikitext_2.number(words)
    assert list(numbers) == ["<unk>", "<eos>", "=", "a", "b", "c", "d"]
    assert wikitext_2.number(words, 3) == {"<unk>": 0, "<eos>": 1, "=": 2}
    counts = collections.Counter(words)
    kept = wikitext_2.number(words, 5)
    assert min(counts[word] for word in kept if word != "<unk>") >= max(counts[w] for w in words if w not in kept)


@pytest.mark.parametrize("vocabulary", [0, 1, 4])
def test_a_vocabulary_that_cannot_be_had_is_refused(vocabulary):
    with pytest.raises(ValueError, match=f"vocabulary must be from 2 to 3, .* got {vocabulary}"):
        wikitext_2.number(["a", "b"], vocabulary)


# --- what is held out -------------------------------------------------------------------------------------------------


def test_every_tenth_of_each_class_is_held_out_in_the_order_of_the_data():
    order = torch.Generator().manual_seed(0)
    y = torch.randint(4, (2345,), generator=order)
    y[y == 3] = 7
    x = torch.arange(len(y)).reshape(-1, 1, 1, 1)
    expected, seen = [], collections.Counter()
    for index, label in enumerate(y.tolist()):
        seen[label] += 1
        if seen[label] % 10 == 0:
            expected.append(index)
    rest = sorted(set(range(len(y))) - set(expected))
    train, held_out = hold_out_(x, y.clone())
    assert held_out[0].flatten().tolist() == expected and torch.equal(held_out[1], y[expected])
    assert train[0].flatten().tolist() == rest and torch.equal(train[1], y[rest])


# --- the coding of CIFAR-10 -------------------------------------------------------------------------------------------


def encode(images: np.ndarray) -> bytes:
    """A coded file of images (N, 32, 32, 3), by the description of the coding, one pixel after the other."""
    arrays = {f"p{plane}q{group:02d}": [] for plane in range(3) for group in range(16)}
    green = images[..., 1].astype(int)
    for c, values in enumerate((green, images[..., 0] - green, images[..., 2] - green)):
        errors = np.zeros_like(values)
        for y in range(32):
            for x in range(32):
                for pixels, error in zip(values, errors, strict=True):
                    if y == 0:
                        west = pixels[0, x - 1] if x else (128 if c == 0 else 0)
                        north = north_west = north_east = west
                        e_west = error[0, x - 1] if x else 0
                        e_north = e_north_east = e_north_west = e_west
                    else:
                        right, left = min(x + 1, 31), max(x - 1, 0)
                        north, e_north = pixels[y - 1, x], error[y - 1, x]
                        west = pixels[y, x - 1] if x else pixels[y - 1, 0]
                        e_west = error[y, x - 1] if x else error[y - 1, 0]
                        north_west, e_north_west = pixels[y - 1, left], error[y - 1, left]
                        north_east, e_north_east = pixels[y - 1, right], error[y - 1, right]
                    activity = abs(west - north_west) + abs(north - north_west) + abs(north - north_east)
                    activity += e_west + e_north + e_north_east + e_north_west
                    group = sum(threshold <= activity for threshold in coding.THRESHOLDS)
                    predicted = sorted((west, north, west + north - north_west))[1]
                    residual = int(pixels[y, x] - predicted)
                    residual = (residual + 128) % 256 - 128  # the decoder takes the sum modulo 256
                    symbol = 2 * residual if residual >= 0 else -2 * residual - 1
                    arrays[f"p{c}q{group:02d}"].append(symbol)
                    error[y, x] = abs(pixels[y, x] - predicted)
    file = io.BytesIO()
    np.savez_compressed(file, **{name: np.array(symbols, np.uint8) for name, symbols in arrays.items()})
    return file.getvalue()


@pytest.fixture(scope="module")
def coded():
    """Images, smooth and noisy ones, and their coded file."""
    order = np.random.default_rng(0)
    smooth = order.integers(0, 8, (3, 32, 32, 3)).cumsum(axis=1).clip(0, 255)
    images = np.concatenate([smooth, order.integers(0, 256, (2, 32, 32, 3))]).astype(np.uint8)
    return images, encode(images)


def test_a_coded_file_is_decoded_to_what_was_coded(tmp_path, coded):
    images, content = coded
    path = tmp_path / "some.npz"
    path.write_bytes(content)
    assert np.array_equal(cifar.read_coded(path, of("sha256", content), of("sha256", images.tobytes()), 5), images)


def damage_a_byte(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def other_shape(content: bytes) -> bytes:
    return content.replace(b"(5, 32, 32, 3)", b"(5, 32, 3, 32)")


def object_array(content: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [damage_a_byte, lambda content: content[:-1], lambda content: b"", lambda content: content[:30]]
    + [other_shape, object_array, lambda content: content.replace(b"(5,", b"((,")],
    ids=["a byte", "cut", "empty", "cut in the header", "another shape", "an object", "no header"],
)
def test_kept_pixels_that_are_damaged_are_decoded_again(tmp_path, coded, cache_of_its_own, damage):
    images, content = coded
    path, digests = tmp_path / "some.npz", (of("sha256", coded[1]), of("sha256", images.tobytes()))
    path.write_bytes(content)
    cifar.read_coded(path, *digests, 5)
    (kept,) = cache_of_its_own.iterdir()
    good = kept.read_bytes()
    assert damage(good) != good
    kept.write_bytes(damage(good))
    assert np.array_equal(cifar.read_coded(path, *digests, 5), images)
    assert [file.name for file in cache_of_its_own.iterdir()] == [kept.name] and kept.read_bytes() == good


def test_pixels_that_cannot_be_kept_are_decoded_all_the_same(tmp_path, coded, monkeypatch):
    images, content = coded
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = tmp_path / "some.npz"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="cannot be kept"):
        pixels = cifar.read_coded(path, of("sha256", content), of("sha256", images.tobytes()), 5)
    assert np.array_equal(pixels, images)


def test_a_coded_file_that_is_altered_is_refused_before_and_after_decoding(tmp_path, coded, cache_of_its_own):
    images, content = coded
    path = tmp_path / "some.npz"
    path.write_bytes(content)
    expected, of_pixels = of("sha256", b"other"), of("sha256", images.tobytes())
    with pytest.raises(CorruptDataError) as error:
        cifar.read_coded(path, expected, of_pixels, 5)
    for part in (str(path), of("sha256", content).split(":")[1], expected.split(":")[1]):
        assert part in str(error.value)
    with pytest.raises(CorruptDataError, match=r"some.npz, decoded, is not the published file: its sha256 is"):
        cifar.read_coded(path, of("sha256", content), expected, 5)
    with pytest.raises(CorruptDataError, match=r"some.npz does not hold 4 coded images"):
        cifar.read_coded(path, of("sha256", content), of_pixels, 4)
    for damaged in (content[:-100], with_last_array(content, -1), with_last_array(content, 1)):
        path.write_bytes(damaged)
        with pytest.raises(CorruptDataError, match=r"some.npz does not hold 5 coded images"):
            cifar.read_coded(path, of("sha256", damaged), of_pixels, 5)
    assert not cache_of_its_own.exists()


def with_last_array(content: bytes, longer: int) -> bytes:
    """A coded file with one symbol more, or one fewer, in an array of the last plane."""
    arrays = dict(np.load(io.BytesIO(content)))
    longest = max(arrays, key=lambda name: (name.startswith("p2"), len(arrays[name])))
    arrays[longest] = np.resize(arrays[longest], len(arrays[longest]) + longer)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@needs("cifar-10")
def test_a_part_of_cifar_10_that_is_missing_or_altered_is_named(tmp_path):
    folder = tmp_path / "cifar-10"
    folder.mkdir()
    (folder / "train_1.npz").write_bytes((DATA / "cifar-10" / "train_1.npz").read_bytes())
    with pytest.raises(MissingDataError, match=r"cifar-10/train_2.npz is missing: say --data-dir"):
        cifar.load_10(tmp_path)
    (folder / "train_2.npz").write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(CorruptDataError, match=rf"train_2.npz is not .* {found}, expected c5ab3f16e80d87c7d6ce5ec869"):
        cifar.load_10(tmp_path)


# --- the official layout of CIFAR -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Official:
    """A small CIFAR in the official layout: its archive, as bytes and as its description, its images and labels."""

    archive: files.Archive
    content: bytes
    members: dict[str, bytes]
    images: dict[str, np.ndarray]
    labels: dict[str, list[int]]

    def write(self, folder: Path, unpacked: bool) -> None:
        if unpacked:
            (folder / self.archive.folder).mkdir()
            for name, content in self.members.items():
                (folder / self.archive.folder / name).write_bytes(content)
        else:
            (folder / self.archive.name).write_bytes(self.content)


def official(published: files.Archive, coarse: bool) -> Official:
    order = np.random.default_rng(1)
    images, labels, members = {}, {}, {}
    for name in published.members:
        images[name] = order.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
        labels[name] = order.integers(0, 3, 30).tolist()
        members[name] = b"".join(
            bytes([19] * coarse + [label]) + b"".join(image[..., channel].tobytes() for channel in range(3))
            for label, image in zip(labels[name], images[name], strict=True)
        )
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in ("batches.meta.txt", *reversed(members)):  # not in the order of their names
            content = members.get(name, b"airplane\n")
            member = tarfile.TarInfo(f"{published.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    content = file.getvalue()
    digests = {name: of("sha1", content) for name, content in members.items()}
    return Official(
        dataclasses.replace(published, digest=of("md5", content), members=digests), content, members, images, labels
    )


def assert_holds(found: Labelled, data: Official, names: list[str]) -> None:
    """Every image of the training files of these names, in their order, and the test file's."""
    labels = torch.tensor([label for name in names for label in data.labels[name]])
    images = torch.from_numpy(np.concatenate([data.images[name] for name in names])).permute(0, 3, 1, 2).contiguous()
    train, held_out = hold_out_(images, labels)
    last = list(data.images)[-1]
    test = (torch.from_numpy(data.images[last]).permute(0, 3, 1, 2), torch.tensor(data.labels[last]))
    for (x, y), expected in zip((found.train, found.held_out, found.test), (train, held_out, test), strict=True):
        assert x.dtype == torch.uint8 and y.dtype == torch.int64 and x.is_contiguous()
        assert torch.equal(x, expected[0]) and torch.equal(y, expected[1])


@pytest.mark.parametrize("unpacked", [True, False], ids=["unpacked", "archive"])
def test_cifar_100_is_read_with_its_fine_labels(tmp_path, unpacked):
    data = official(cifar.CIFAR_100, coarse=True)
    data.write(tmp_path, unpacked)
    assert_holds(cifar.load_100(tmp_path, archive=data.archive), data, ["train.bin"])


@pytest.mark.parametrize("unpacked", [True, False], ids=["unpacked", "archive"])
@pytest.mark.parametrize("parts", [2, 5])
def test_cifar_10_is_read_in_its_official_layout(tmp_path, unpacked, parts):
    data = official(cifar.CIFAR_10, coarse=False)
    data.write(tmp_path, unpacked)
    found = cifar.load_10(tmp_path, parts, archive=data.archive)
    assert_holds(found, data, [f"data_batch_{part}.bin" for part in range(1, parts + 1)])


def test_an_unpacked_file_of_cifar_that_is_missing_or_altered_is_named(tmp_path):
    data = official(cifar.CIFAR_100, coarse=True)
    data.write(tmp_path, unpacked=True)
    path = tmp_path / "cifar-100-binary" / "test.bin"
    path.write_bytes(data.members["test.bin"][:-1])
    found = hashlib.sha1(data.members["test.bin"][:-1]).hexdigest()
    expected = data.archive.members["test.bin"].split(":")[1]
    with pytest.raises(CorruptDataError, match=rf"test.bin is not .* its sha1 is {found}, expected {expected}"):
        cifar.load_100(tmp_path, archive=data.archive)
    path.unlink()
    with pytest.raises(MissingDataError, match=r"cifar-100-binary/test.bin is missing"):
        cifar.load_100(tmp_path, archive=data.archive)


def test_an_archive_of_cifar_that_is_cut_or_lacks_a_file_is_refused(tmp_path):
    data = official(cifar.CIFAR_100, coarse=True)
    path = tmp_path / data.archive.name
    path.write_bytes(data.content[:-10])
    with pytest.raises(CorruptDataError, match=rf"cifar-100-binary.tar.gz is not .*{data.archive.digest[4:]}"):
        cifar.load_100(tmp_path, archive=data.archive)
    path.write_bytes(data.content)
    other = dataclasses.replace(data.archive, members={"more.bin": "sha1:0", **data.archive.members})
    with pytest.raises(CorruptDataError, match=r"cifar-100-binary.tar.gz lacks cifar-100-binary/more.bin"):
        cifar.load_100(tmp_path, archive=other)


# --- TinyImageNet -----------------------------------------------------------------------------------------------------

CLASSES = ("n02", "n01", "n03")  # not in the order of their names, as in the published wnids.txt


@pytest.fixture
def tiny(tmp_path):
    """A small TinyImageNet, unpacked: three classes, each with 20 images, and six in val."""
    image = pytest.importorskip("PIL.Image", reason="it writes JPEG files")
    order = np.random.default_rng(2)
    folder = tmp_path / "tiny-imagenet-200"

    def write(path: Path, grey: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = order.integers(0, 256, (64, 64) if grey else (64, 64, 3), dtype=np.uint8)
        image.fromarray(pixels).save(path, "JPEG")

    for wnid in CLASSES:
        for number in range(20):
            write(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", grey=number == 3)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    rows = [(f"val_{number}.JPEG", CLASSES[number % 3]) for number in range(6)]
    for name, _ in rows:
        write(folder / "val" / "images" / name)
    write(folder / "test" / "images" / "test_0.JPEG")
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in CLASSES))
    (folder / "val" / "val_annotations.txt").write_text("".join(f"{name}\t{wnid}\t0\t0\t9\t9\n" for name, wnid in rows))
    return folder


def zipped(folder: Path) -> tuple[files.Archive, Path]:
    path = folder.parent / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder.parent))
    return dataclasses.replace(tiny_imagenet.TINY_IMAGENET, digest=of("md5", path.read_bytes())), path


def pixels_of(path: Path) -> torch.Tensor:
    from PIL import Image  # noqa: PLC0415 - the fixture skips where it is missing

    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("unpacked", [True, False], ids=["unpacked", "archive"])
def test_tiny_imagenet_is_read_by_class_with_its_validation_images_as_the_test(tmp_path, tiny, unpacked, monkeypatch):
    archive, path = zipped(tiny)
    folder, expected = tmp_path, tmp_path / "tiny-imagenet-200"
    if not unpacked:
        folder = tmp_path / "archive"
        folder.mkdir()
        path.rename(folder / path.name)
    found = tiny_imagenet.load(folder, archive=archive)
    names = [
        expected / "train" / wnid / "images" / f"{wnid}_{number}.JPEG"
        for wnid in sorted(CLASSES)
        for number in range(20)
    ]
    labels = torch.arange(3).repeat_interleave(20)
    train, held_out = hold_out_(torch.stack([pixels_of(name) for name in names]), labels)
    test = torch.stack([pixels_of(expected / "val" / "images" / f"val_{number}.JPEG") for number in range(6)])
    expected_parts = (train, held_out, (test, torch.tensor([1, 0, 2, 1, 0, 2])))
    for part, (x, y) in zip((found.train, found.held_out, found.test), expected_parts, strict=True):
        assert torch.equal(part[0], x) and torch.equal(part[1], y)

    monkeypatch.setattr(tiny_imagenet, "_decoded", None)  # the kept pixels are used
    again = tiny_imagenet.load(folder, archive=archive)
    assert torch.equal(again.train[0], found.train[0]) and torch.equal(again.test[0], found.test[0])


def test_an_image_that_has_changed_is_decoded_again(tmp_path, tiny):
    first = tiny_imagenet.load(tmp_path)
    images = tiny / "train" / "n01" / "images"
    small, large = sorted((images / f"n01_{number}.JPEG" for number in (0, 1)), key=lambda path: path.stat().st_size)
    size = large.stat().st_size
    large.write_bytes(small.read_bytes().ljust(size, b"\0"))  # what follows the image is not read; the size stays
    second = tiny_imagenet.load(tmp_path)
    assert not torch.equal(first.train[0], second.train[0])
    assert torch.equal(second.train[0][0], second.train[0][1])
    assert torch.equal(first.train[0][2:], second.train[0][2:])


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def enlarge(folder):
    from PIL import Image  # noqa: PLC0415 - the fixture skips where it is missing

    Image.new("RGB", (63, 65)).save(folder / "val" / "images" / "val_1.JPEG")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("wnids.txt"), "tiny-imagenet-200 lacks wnids.txt"),
        (remove("val/val_annotations.txt"), "tiny-imagenet-200 lacks val/val_annotations.txt"),
        (remove("train/n01/images/n01_7.JPEG"), "lacks images: train/n01 holds 19, other classes 20"),
        (write("wnids.txt", b"n01\nn02\nn03\nn04\n"), "lacks images: train/n04 holds 0, other classes 20"),
        (remove("val/images/val_2.JPEG"), "lacks val/images/val_2.JPEG"),
        (write("val/val_annotations.txt", b"val_0.JPEG\tn09\t0\n"), "lacks val/images/val_0.JPEG, or its class n09"),
        (write("train/n02/images/n02_5.JPEG", b"no image"), "train/n02/images/n02_5.JPEG of .* is damaged"),
        (enlarge, "val/images/val_1.JPEG of .* must have 64 x 64 pixels, got 63 x 65"),
    ],
)
def test_a_tiny_imagenet_that_is_not_complete_is_refused(tmp_path, tiny, damage, message):
    damage(tiny)
    with pytest.raises(CorruptDataError, match=message):
        tiny_imagenet.load(tmp_path)


def test_an_altered_archive_of_tiny_imagenet_is_refused(tmp_path, tiny):
    archive, path = zipped(tiny)
    (tmp_path / "other").mkdir()
    content = damage_a_byte(path.read_bytes())
    (tmp_path / "other" / path.name).write_bytes(content)
    found = hashlib.md5(content).hexdigest()
    with pytest.raises(
        CorruptDataError, match=rf"tiny-imagenet-200.zip is not .*{found}, expected {archive.digest[4:]}"
    ):
        tiny_imagenet.load(tmp_path / "other", archive=archive)


def test_tiny_imagenet_without_pillow_says_what_to_install(tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDataError, match="pip install pillow"):
        tiny_imagenet.load(tmp_path)


# --- downloads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder, and the address it is served at. What is called cut ends early."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def copyfile(self, source, outputfile):
            content = source.read()
            outputfile.write(content[:-1000] if "cut" in self.path else content)

    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


@pytest.mark.parametrize("compressed", [True, False], ids=["compressed", "plain"])
def test_a_file_that_is_missing_is_downloaded_once(tmp_path, server, capsys, compressed):
    served, address = server
    content = os.urandom(2_500_000)
    arriving = gzip.compress(content, 1) if compressed else content
    name = "some.bin.gz" if compressed else "some.bin"
    (served / name).write_bytes(arriving)
    file = files.Published("some.bin", of("sha256", content), f"{address}/{name}", of("md5", arriving))
    folder = tmp_path / "data" / "set"
    with pytest.raises(MissingDataError, match=rf"{name} is missing"):
        files.read(folder, file)
    assert files.read(folder, file, download=True) == content
    assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_bytes() == arriving
    shown = capsys.readouterr().err
    assert name in shown and "3/3" in shown
    (served / name).unlink()
    assert files.read(folder, file, download=True) == content
    assert capsys.readouterr().err == ""


def test_an_archive_that_is_missing_is_downloaded_and_read(tmp_path, server):
    served, address = server
    data = official(cifar.CIFAR_100, coarse=True)
    (served / data.archive.name).write_bytes(data.content)
    archive = dataclasses.replace(data.archive, url=f"{address}/{data.archive.name}")
    folder = tmp_path / "data"
    assert_holds(cifar.load_100(folder, download=True, archive=archive), data, ["train.bin"])
    assert [path.name for path in folder.iterdir()] == [data.archive.name]


def test_what_arrives_altered_or_cut_is_refused_and_leaves_nothing(tmp_path, server):
    served, address = server
    content = os.urandom(5000)
    (served / "other").write_bytes(b"other")
    (served / "cut").write_bytes(content)
    for name, arrived in (("other", b"other"), ("cut", content[:-1000])):
        url, expected = f"{address}/{name}", of("md5", content)
        with pytest.raises(CorruptDataError) as error:
            files.fetch(url, tmp_path / "data" / name, expected)
        for part in (url, of("md5", arrived).split(":")[1], expected.split(":")[1]):
            assert part in str(error.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_without_a_network_the_file_the_address_and_the_reason_are_named(tmp_path, server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused, absent = f"http://127.0.0.1:{port}/some", f"{server[1]}/absent"
    for url, reason in ((refused, "refused"), (absent, "404"), (f"file://{tmp_path}/absent", "No such file")):
        with pytest.raises(
            MissingDataError, match=rf"data/some is missing and cannot be downloaded from {url}: .*{reason}"
        ):
            files.fetch(url, tmp_path / "data" / "some", "md5:0")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(MissingDataError, match=r"data/some is missing and cannot be downloaded"):
        files.fetch("file:///dev/null", tmp_path / "data" / "some", "md5:0")


def test_an_interrupted_download_leaves_nothing(tmp_path, server, monkeypatch):
    served, address = server
    (served / "some").write_bytes(b"content")

    class Interrupted:
        def set_description(self, text):
            pass

        def update(self):
            raise KeyboardInterrupt

        def close(self):
            pass

    monkeypatch.setattr(files, "progress_bar", lambda total, unit: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        files.fetch(f"{address}/some", tmp_path / "data" / "some", of("md5", b"content"))
    assert list((tmp_path / "data").iterdir()) == []


@each_reader
def test_a_reader_downloads_from_the_published_address_what_has_the_published_checksum(
    tmp_path, monkeypatch, load, name, published
):
    class Asked(Exception):  # noqa: N818 - not an error
        pass

    def fetch(*arguments):
        raise Asked(*arguments)

    monkeypatch.setattr(files, "fetch", fetch)
    with pytest.raises(Asked) as asked:
        load(tmp_path, download=True)
    expected = getattr(published, "arriving", None) or published.digest
    assert asked.value.args == (published.url, tmp_path / name, expected)
    assert published.url.endswith(Path(name).name)
