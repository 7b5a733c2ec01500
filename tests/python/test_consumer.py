"""The installed package as a CMake user meets it: found by find_package, used from C++, run without LD_LIBRARY_PATH."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import lambda_gelu

SOURCE = Path(__file__).parents[1] / "consumer"
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on PATH")


def run(*command):
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    return subprocess.run([str(c) for c in command], capture_output=True, check=False, env=environment)


def configure(build, torch_root):
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    prefix = f"-DCMAKE_PREFIX_PATH={lambda_gelu.cmake_prefix_path}"
    return run("cmake", "-S", SOURCE, "-B", build, prefix, f"-DTorch_ROOT={torch_root}", *launcher)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    build = tmp_path_factory.mktemp("consumer")
    for step in (configure(build, Path(torch.__file__).parent), run("cmake", "--build", build, "--parallel")):
        assert step.returncode == 0, (step.stdout + step.stderr).decode()
    return build


@needs_cmake
def test_trains_hardens_and_swaps(programs):
    trained = run(programs / "train")
    assert trained.returncode == 0, (trained.stdout + trained.stderr).decode()
    assert b"largest change of a prediction by the swap" in trained.stdout


@needs_cmake
def test_cpp_and_python_give_the_same_bits(programs, tmp_path):
    raw_hardness, temperature = 0.0625, 0.1
    x = torch.cat([torch.randn(20_001) * 3, torch.tensor([0.0, -0.0, float("inf"), 1e-40, -12.5, 3e38])])
    x.numpy().tofile(tmp_path / "x")
    evaluated = run(programs / "evaluate", tmp_path / "x", raw_hardness, temperature)
    assert evaluated.returncode == 0, evaluated.stderr.decode()
    from_cpp = np.frombuffer(evaluated.stdout, dtype=np.int32)

    x.requires_grad_()
    s = torch.tensor([raw_hardness], requires_grad=True)
    y = lambda_gelu.softplus_lambda_gelu(x, s, temperature=temperature)
    y.backward(torch.ones_like(y))
    from_python = torch.cat([y.detach(), x.grad, s.grad]).numpy().view(np.int32)
    np.testing.assert_array_equal(from_cpp, from_python)


@needs_cmake
def test_another_torch_is_refused_in_a_sentence(tmp_path):
    fake = tmp_path / "torch"
    for name in ("include/ATen/core/Tensor.h", "lib/libtorch_cpu.so", "lib/libc10.so"):
        (fake / name).parent.mkdir(parents=True, exist_ok=True)
        (fake / name).touch()
    (fake / "version.py").write_text("__version__ = '1.0.0+cpu'\n")
    configured = configure(tmp_path / "build", fake)
    assert configured.returncode != 0
    message = " ".join(configured.stderr.decode().split())
    assert "built against torch" in message
    assert "is torch 1.0.0+cpu" in message
