"""The devices that tests run on.

A test that asks for the fixture `device` (or whose module does: `pytestmark = pytest.mark.usefixtures("device")`) runs
on the CPU and, where there are a GPU and kernels for it, on CUDA; `only("cpu")` or `only("cuda")` restricts it. The
device is the default device while the test runs, so that its body needs no word about it.
"""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch
from devices import DEVICES, cuda_lacks, devices_of


def pytest_addoption(parser):
    parser.addoption("--device", choices=DEVICES, help="only the tests that take a device, and those on this one")


def pytest_configure(config):
    config.addinivalue_line("markers", "only(device): of a test that takes a device: run it on this one alone")
    if config.getoption("device") == "cuda" and cuda_lacks():
        raise pytest.UsageError(f"--device cuda: {cuda_lacks()}")


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", devices_of(metafunc.definition, metafunc.config), indirect=True)


def pytest_collection_modifyitems(config, items):
    asked = config.getoption("device")
    if not asked:
        return

    def runs(item):
        only = item.get_closest_marker("only")
        return not {"device", "target"}.isdisjoint(item.fixturenames) and (only is None or asked in only.args)

    config.hook.pytest_deselected(items=[item for item in items if not runs(item)])
    items[:] = [item for item in items if runs(item)]


@pytest.fixture(autouse=True, scope="module")
def compiler_forgets():
    """Every file starts with a compiler that has compiled nothing.

    Past its limit of recompilations it leaves a function alone for good, and models share theirs: that of
    nn.Sequential.
    """
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def device(request):
    if request.param == "cuda" and cuda_lacks():
        pytest.skip(f"needs CUDA: {cuda_lacks()}")
    # The CPU needs no context, and tests without one: a mode would be active in all of them.
    with contextlib.nullcontext() if request.param == "cpu" else torch.device(request.param):
        yield request.param


@pytest.fixture
def on_cuda(device):
    return device == "cuda"
