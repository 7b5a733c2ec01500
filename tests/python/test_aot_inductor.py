"""Packages of AOTInductor: loaded in Python and in C++, with the operators of this library and without them."""

import subprocess
import sys

import pytest
import torch
from consumer import built, needs_cmake, raw_bytes, run
from torch import nn
from torch.export import Dim, export

import lambda_gelu
from lambda_gelu import LambdaGELU

QUICKLY = {"aot_inductor.compile_wrapper_opt_level": "O0"}
MODES = pytest.mark.parametrize("mode", ["opaque", "fuse"])


def network():
    torch.manual_seed(0)
    hardness = torch.linspace(1.2, 4, 6)
    frozen = LambdaGELU()
    frozen.freeze_hardness()
    frozen.set_hardness(0.7)
    return nn.Sequential(nn.Linear(4, 6), LambdaGELU(6, init_hardness=hardness), nn.Linear(6, 3), frozen)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Packages by the mode in which they were compiled."""
    folder = tmp_path_factory.mktemp("packages")
    program = export(network(), (torch.randn(5, 4),), dynamic_shapes=({0: Dim("batch", min=1)},))
    made = {}

    def of(mode):
        if mode not in made:
            previous = lambda_gelu.compile_mode()
            lambda_gelu.set_compile_mode(mode)
            try:
                made[mode] = torch._inductor.aoti_compile_and_package(
                    program, package_path=str(folder / f"{mode}.pt2"), inductor_configs=QUICKLY
                )
            finally:
                lambda_gelu.set_compile_mode(previous)
        return made[mode]

    return of


@MODES
def test_a_package_computes_the_model_at_any_batch(package, mode):
    loaded, model = torch._inductor.aoti_load_package(package(mode)), network()
    for batch in (1, 5, 9):
        x = torch.randn(batch, 4)
        torch.testing.assert_close(loaded(x), model(x).detach(), rtol=1e-6, atol=1e-6)


LOAD = """
import torch{imports}
x = torch.linspace(-3, 3, 8).reshape(2, 4)
torch.save(torch._inductor.aoti_load_package({package!r})(x), {output!r})
"""


@pytest.mark.parametrize(
    ("mode", "imports"), [("opaque", ", lambda_gelu"), ("fuse", "")], ids=["opaque_with_us", "fused_without_us"]
)
def test_a_fresh_process_runs_it(package, tmp_path, mode, imports):
    output = str(tmp_path / "y.pt")
    code = LOAD.format(imports=imports, package=package(mode), output=output)
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert fresh.returncode == 0, fresh.stderr
    x = torch.linspace(-3, 3, 8).reshape(2, 4)
    torch.testing.assert_close(torch.load(output), network()(x).detach(), rtol=1e-6, atol=1e-6)


# --- in C++ ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    # as on Ubuntu, whose compiler drops libraries of which no symbol is used
    drop = "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--as-needed"
    return built(tmp_path_factory.mktemp("packages_cpp"), ["run_package", "run_package_alone"], drop)


@pytest.fixture
def x(tmp_path):
    values = torch.randn(7, 4)
    (tmp_path / "x").write_bytes(raw_bytes(values))
    return values


@needs_cmake
@pytest.mark.parametrize(("mode", "program"), [("opaque", "run_package"), ("fuse", "run_package_alone")])
def test_a_cpp_program_runs_it_to_the_same_bits_as_python(package, programs, tmp_path, x, mode, program):  # noqa: PLR0917
    ran = run(programs / program, package(mode), tmp_path / "x", 4)
    assert ran.returncode == 0, ran.stderr.decode()
    assert ran.stdout == raw_bytes(torch._inductor.aoti_load_package(package(mode))(x))


@needs_cmake
def test_a_cpp_program_without_our_library_names_the_operator_it_lacks(package, programs, tmp_path, x):
    ran = run(programs / "run_package_alone", package("opaque"), tmp_path / "x", 4)
    assert ran.returncode != 0
    assert b"Could not find schema for lambda_gelu::lambda_gelu" in ran.stderr
