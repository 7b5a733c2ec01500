"""The CMake project in tests/consumer, and how tests build and run its programs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import lambda_gelu

SOURCE = Path(__file__).parents[1] / "consumer"
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on PATH")


def run(*command):
    """A finished process, run without LD_LIBRARY_PATH."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    return subprocess.run([str(c) for c in command], capture_output=True, check=False, env=environment)


def configure(build, torch_root, *options):
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    prefix = f"-DCMAKE_PREFIX_PATH={lambda_gelu.cmake_prefix_path}"
    return run("cmake", "-S", SOURCE, "-B", build, prefix, f"-DTorch_ROOT={torch_root}", *launcher, *options)


def built(build, targets, *options):
    """`build`, after programs of the project have been made there for the torch of this interpreter."""
    for step in (
        configure(build, Path(torch.__file__).parent, *options),
        run("cmake", "--build", build, "--parallel", "--target", *targets),
    ):
        assert step.returncode == 0, (step.stdout + step.stderr).decode()
    return build


def raw_bytes(tensor):
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
