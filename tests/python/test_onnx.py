"""λ-GELU in ONNX models: the operators that are written, and what onnxruntime computes with them."""

import io

import pytest
import torch
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


def network(num_parameters=1, *, frozen=False):
    torch.manual_seed(0)
    hardness = torch.linspace(1.2, 4, num_parameters)
    model = nn.Sequential(nn.Linear(4, 6), LambdaGELU(num_parameters, init_hardness=hardness), nn.Linear(6, 3))
    if frozen:
        model[1].freeze_hardness()
        model[1].set_hardness(0.7)
    return model


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


@pytest.mark.parametrize("frozen", [False, True], ids=["learned", "frozen"])
@pytest.mark.parametrize("num_parameters", [1, 6])
def test_lambda_is_a_constant_beside_one_gelu(num_parameters, frozen):
    program = exported(network(num_parameters, frozen=frozen), torch.randn(5, 4))
    onnx.checker.check_model(program.model_proto, full_check=True)
    assert operators(program) == ["Gemm", "Mul", "Gelu", "Div", "Gemm"]


def test_before_opset_20_it_is_written_with_erf():
    program = exported(network(6), torch.randn(5, 4), opset_version=BEFORE_GELU)
    onnx.checker.check_model(program.model_proto, full_check=True)
    assert program.model.opset_imports[""] == BEFORE_GELU
    assert sorted(operators(program)) == ["Add", "Erf", "Gemm", "Gemm", "Mul", "Mul", "Mul"]


def test_a_model_that_was_swapped_is_plain_relu():
    model = network()
    lambda_gelu.to_relu_(model)
    program = exported(model, torch.randn(5, 4), custom_translation_table=None)
    assert operators(program) == ["Gemm", "Relu", "Gemm"]


def test_without_the_table_the_exporter_names_the_op():
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=r"No ONNX function found for .*lambda_gelu"):
        exported(network(), torch.randn(5, 4), custom_translation_table=None)


# --- what onnxruntime computes ---------------------------------------------------------------------------------------

# Both forms and ours round a few times each; y of the pre-activations below stays under 16.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.mark.parametrize("opset_version", [None, BEFORE_GELU])
@pytest.mark.parametrize("frozen", [False, True], ids=["learned", "frozen"])
@pytest.mark.parametrize("num_parameters", [1, 6])
def test_onnxruntime_computes_the_model_at_any_batch(num_parameters, frozen, opset_version):
    model = network(num_parameters, frozen=frozen)
    program = exported(model, torch.randn(5, 4), dynamic_shapes=({0: "batch"},), opset_version=opset_version)
    for batch in (1, 5, 9):
        x = torch.randn(batch, 4)
        torch.testing.assert_close(run(program, x), model(x).detach(), **CLOSE)


@pytest.mark.parametrize("opset_version", [None, BEFORE_GELU])
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_channels_lie_where_channel_dim_says(channel_dim, opset_version):
    site = LambdaGELU(3, init_hardness=torch.tensor([1.1, 2, 5]), channel_dim=channel_dim)
    x = torch.randn(2, 3, 4, 3)
    program = exported(site, x, opset_version=opset_version)
    torch.testing.assert_close(run(program, x), site(x).detach(), **CLOSE)


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
@pytest.mark.parametrize("hardness", [1 + 1e-6, 300.0, 5000.0])
def test_hardened_and_soft_lambda_alike(hardness, opset_version):
    # s / τ = 5000 overflows a naive softplus
    site, x = LambdaGELU(init_hardness=hardness), torch.linspace(-3, 3, 101)
    program = exported(site, x, opset_version=opset_version)
    torch.testing.assert_close(run(program, x), site(x).detach(), **CLOSE)


def test_lambda_may_be_an_input_of_the_model():
    model, x, hardness = Functional(), torch.randn(5, 3), torch.tensor([1.1, 2, 5])
    program = exported(model, x, hardness, dynamic_shapes=({0: "batch", 1: "channels"}, {0: "channels"}))
    x, hardness = torch.randn(2, 4), torch.tensor([1.5, 3, 0.2, 70])
    torch.testing.assert_close(run(program, x, hardness), model(x, hardness), **CLOSE)


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
    model, x = network(6), torch.randn(5, 4)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(run(exported(program, x), x), model(x).detach(), **CLOSE)
