"""λ-GELU in ONNX models: the operators that are written, and what onnxruntime computes with them."""

import io

import pytest
import torch
from networks import network_of_every_kind
from torch import nn

import lambda_gelu
from lambda_gelu import LambdaGELU

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")

from lambda_gelu.integrations.onnx import translation_table  # noqa: E402

BEFORE_GELU = 18


class Converted(nn.Module):
    """float32 outside, as numpy and onnxruntime's Python know it; another dtype inside."""

    def __init__(self, site, dtype):
        super().__init__()
        self.site = site
        self.dtype = dtype

    def forward(self, x):
        return self.site(x.to(self.dtype)).to(x.dtype)


class Functional(nn.Module):
    def forward(self, x, hardness):
        return lambda_gelu.lambda_gelu(x, hardness)


class Raw(nn.Module):
    def forward(self, x, raw_hardness):
        return lambda_gelu.softplus_lambda_gelu(x, raw_hardness, temperature=0.1, channel_dim=-1)


class Each(nn.Module):
    """Several sites on the same input."""

    def __init__(self, *sites):
        super().__init__()
        self.sites = nn.ModuleList(sites)

    def forward(self, x):
        return torch.stack([site(x) for site in self.sites])


def exported(model, *tensors, **options):
    if isinstance(model, nn.Module):
        model.eval()
    options = {"custom_translation_table": translation_table(), "verbose": False, **options}
    return torch.onnx.export(model, tensors, dynamo=True, **options)


def operators(program):
    return [node.op_type for node in program.model.graph]


def serialized(program):
    file = io.BytesIO()
    onnx.save(program.model_proto, file)
    return file.getvalue()


def run(program, *tensors):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(serialized(program), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    (output,) = session.run(None, {name: t.numpy() for name, t in zip(names, tensors, strict=True)})
    return torch.from_numpy(output)


# --- what is written -------------------------------------------------------------------------------------------------


def test_lambda_is_a_constant_beside_one_gelu():
    program = exported(network_of_every_kind(), torch.randn(5, 4))
    onnx.checker.check_model(program.model_proto, full_check=True)
    assert operators(program) == ["Gemm", *4 * ["Mul", "Gelu", "Div"], "Gemm"]


def test_before_opset_20_it_is_written_with_erf():
    program = exported(network_of_every_kind(), torch.randn(5, 4), opset_version=BEFORE_GELU)
    onnx.checker.check_model(program.model_proto, full_check=True)
    assert program.model.opset_imports[""] == BEFORE_GELU
    assert sorted(operators(program)) == [*4 * ["Add"], *4 * ["Erf"], "Gemm", "Gemm", *12 * ["Mul"]]


def test_a_model_that_was_swapped_is_plain_relu():
    model = network_of_every_kind()
    lambda_gelu.to_relu_(model)
    program = exported(model, torch.randn(5, 4), custom_translation_table=None)
    assert operators(program) == ["Gemm", "Relu", "Gemm"]  # one for all, as ReLU of ReLU is ReLU


def test_without_the_table_the_exporter_names_the_op():
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=r"No ONNX function found for .*lambda_gelu"):
        exported(network_of_every_kind(), torch.randn(5, 4), custom_translation_table=None)


# --- what onnxruntime computes ---------------------------------------------------------------------------------------

# Both forms and ours round a few times each; y of the pre-activations below stays under 16.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.mark.parametrize("opset_version", [None, BEFORE_GELU])
def test_onnxruntime_computes_the_model_at_any_batch(opset_version):
    model = network_of_every_kind()
    program = exported(model, torch.randn(5, 4), dynamic_shapes=({0: "batch"},), opset_version=opset_version)
    for batch in (1, 5, 9):
        x = torch.randn(batch, 4)
        torch.testing.assert_close(run(program, x), model(x).detach(), **CLOSE)


@pytest.mark.parametrize("opset_version", [None, BEFORE_GELU])
def test_channels_lie_where_channel_dim_says(opset_version):
    model = Each(*(LambdaGELU(3, init_hardness=torch.tensor([1.1, 2, 5]), channel_dim=d) for d in (0, 1, -1, -2)))
    x = torch.randn(3, 3, 3, 3)
    torch.testing.assert_close(run(exported(model, x, opset_version=opset_version), x), model(x).detach(), **CLOSE)


@pytest.mark.parametrize("opset_version", [None, BEFORE_GELU])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_computed_in_float32_and_rounded_once(dtype, opset_version):
    site = LambdaGELU(3, init_hardness=torch.tensor([1.1, 2, 5]))
    x = torch.randn(50, 3) * 3
    program = exported(Converted(site, dtype), x, opset_version=opset_version)
    expected = site(x.to(dtype)).float().detach()
    # one ULP, or what 1 + Erf loses in the tail
    torch.testing.assert_close(run(program, x), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("opset_version", [None, BEFORE_GELU])
def test_float64_stays_float64(opset_version):
    # onnxruntime has no Erf in float64 on the CPU, and that of the reference implementation computes in float32: so
    # the types and the constants.
    site = LambdaGELU(3, init_hardness=torch.tensor([1.1, 2, 5]), dtype=torch.float64)
    program = exported(site, torch.randn(7, 3, dtype=torch.float64), opset_version=opset_version)
    values = [value for node in program.model.graph for value in (*node.inputs, *node.outputs)]
    assert {str(value.dtype) for value in values} == {"DOUBLE"}
    (constant,) = (c.const_value.numpy() for c in program.model.graph.initializers.values() if c.const_value.size == 3)
    hardness = site.hardness.detach() * (1 if opset_version is None else 0.5**0.5)
    torch.testing.assert_close(torch.from_numpy(constant).flatten(), hardness, rtol=1e-15, atol=0)


@pytest.mark.parametrize("opset_version", [None, BEFORE_GELU])
def test_hardened_and_soft_lambda_alike(opset_version):
    # s / τ = 5000 overflows a naive softplus
    model = Each(*(LambdaGELU(init_hardness=hardness) for hardness in (1 + 1e-6, 300.0, 5000.0)))
    x = torch.linspace(-3, 3, 101)
    torch.testing.assert_close(run(exported(model, x, opset_version=opset_version), x), model(x).detach(), **CLOSE)


def test_lambda_may_be_an_input_of_the_model():
    model, x, hardness = Functional(), torch.randn(5, 3), torch.tensor([1.1, 2, 5])
    program = exported(model, x, hardness, dynamic_shapes=({0: "batch", 1: "channels"}, {0: "channels"}))
    x, hardness = torch.randn(2, 4), torch.tensor([1.5, 3, 0.2, 70])
    torch.testing.assert_close(run(program, x, hardness), model(x, hardness), **CLOSE)


def test_s_may_be_an_input_of_the_model():
    # and λ is computed in its graph, where onnxruntime must know every operator
    model, x, raw_hardness = Raw(), torch.randn(4, 5), torch.tensor([-500, -0.3, 0, 0.4, 500])
    torch.testing.assert_close(run(exported(model, x, raw_hardness), x, raw_hardness), model(x, raw_hardness), **CLOSE)


def test_thousands_of_channels_which_the_exporter_does_not_fold():
    site, x = LambdaGELU(9000, init_hardness=torch.linspace(1.1, 5, 9000)), torch.randn(2, 9000)
    program = exported(site, x)
    assert "Exp" in operators(program)
    torch.testing.assert_close(run(program, x), site(x).detach(), **CLOSE)


def test_an_input_without_dimensions_stays_one():
    site, x = LambdaGELU(), torch.tensor(0.3)
    output = run(exported(site, x), x)
    assert output.shape == ()
    torch.testing.assert_close(output, site(x).detach(), **CLOSE)


@pytest.mark.parametrize("opset_version", [None, BEFORE_GELU])
def test_the_error_is_below_a_millionth_absolute_and_whole_in_the_far_tail(opset_version):
    # docs/export.md states both
    site, x = LambdaGELU(init_hardness=1.0 + 1e-9), torch.linspace(-12, 12, 24_001)
    actual, expected = run(exported(site, x, opset_version=opset_version), x), site(x).detach()
    assert (actual - expected).abs().max() < 1e-6
    assert actual[x < -6].count_nonzero() == 0
    assert (expected[x < -6] < 0).all()


# --- programs --------------------------------------------------------------------------------------------------------


def test_an_exported_program_goes_to_onnx_too():
    model, x = network_of_every_kind(), torch.randn(5, 4)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(run(exported(program, x), x), model(x).detach(), **CLOSE)
