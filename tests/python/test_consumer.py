"""The installed package as a CMake user meets it: found by find_package, trained from C++, run without LD_LIBRARY_PATH."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import lambda_gelu

SOURCE = Path(__file__).parents[1] / "consumer"


def run(*command, **environment):
    env = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"} | environment
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, env=env)


def configure(build, *defines):
    prefix = f"-DCMAKE_PREFIX_PATH={lambda_gelu.cmake_prefix_path}"
    return run("cmake", "-S", SOURCE, "-B", build, prefix, *defines)


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on PATH")
class TestConsumer:
    def test_trains_hardens_and_swaps(self, tmp_path):
        launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
        configured = configure(tmp_path, f"-DTorch_ROOT={Path(torch.__file__).parent}", *launcher)
        assert configured.returncode == 0, configured.stdout + configured.stderr
        built = run("cmake", "--build", tmp_path)
        assert built.returncode == 0, built.stdout + built.stderr
        ran = run(tmp_path / "consumer")
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "largest change of a prediction by the swap" in ran.stdout

    def test_another_torch_is_refused_in_a_sentence(self, tmp_path):
        fake = tmp_path / "torch"
        (fake / "include" / "ATen" / "core").mkdir(parents=True)
        (fake / "include" / "ATen" / "core" / "Tensor.h").touch()
        (fake / "lib").mkdir()
        for library in ("libtorch_cpu.so", "libc10.so"):
            (fake / "lib" / library).touch()
        (fake / "version.py").write_text("__version__ = '1.0.0+cpu'\n")
        configured = configure(tmp_path / "build", f"-DTorch_ROOT={fake}")
        assert configured.returncode != 0
        message = " ".join(configured.stderr.split())
        assert "built against torch" in message
        assert "is torch 1.0.0+cpu" in message
