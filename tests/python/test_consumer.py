"""The installed package as a CMake user meets it: found by find_package, used from C++, run without LD_LIBRARY_PATH."""

import pytest
import torch
from consumer import built, configure, needs_cmake, raw_bytes, run

import lambda_gelu


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return built(tmp_path_factory.mktemp("consumer"), ["train", "evaluate"])


@needs_cmake
def test_trains_hardens_to_what_the_statistics_ask_for_and_swaps(programs, tmp_path):
    trained = run(programs / "train", tmp_path / "report.json")
    assert trained.returncode == 0, (trained.stdout + trained.stderr).decode()
    assert b"largest change of a prediction by the swap" in trained.stdout
    (site,) = lambda_gelu.SubstitutionReport.from_json(tmp_path / "report.json").sites  # one format for both languages
    assert site.name == "1"
    assert site.ser_db > 30  # as asked for; the pre-activations have grown since
    assert 0 < site.expected_gap < 0.1
    assert site.zeros_before <= site.zeros_after < 1


@needs_cmake
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_cpp_and_python_give_the_same_bits(programs, tmp_path, dtype):
    raw_hardness, temperature = 0.0625, 0.1
    special = torch.tensor([0.0, -0.0, float("inf"), 1e-40, -12.5, 3e38])
    x = torch.cat([torch.randn(20_001) * 3, special]).to(dtype).reshape(-1, 3)
    (tmp_path / "x").write_bytes(raw_bytes(x))
    name = str(dtype).removeprefix("torch.")
    evaluated = run(programs / "evaluate", tmp_path / "x", name, raw_hardness, temperature)
    assert evaluated.returncode == 0, evaluated.stderr.decode()

    x.requires_grad_()
    s = ((torch.arange(3.0) - 0.5) * raw_hardness).requires_grad_()
    y = lambda_gelu.softplus_lambda_gelu(x, s, temperature=temperature)
    y.backward(torch.ones_like(y))
    assert evaluated.stdout == raw_bytes(y) + raw_bytes(x.grad) + raw_bytes(s.grad)


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
