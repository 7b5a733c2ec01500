"""torch.export of λ-GELU: what a program computes, how λ is held in it, and what is refused while it is traced."""

import copy
import subprocess
import sys

import pytest
import torch
from networks import network_of_every_kind
from torch import nn
from torch.export import Dim, export

import lambda_gelu
from lambda_gelu import LambdaGELU

OP = torch.ops.lambda_gelu.lambda_gelu.default
STRICT = pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])


class Forward(nn.Module):
    """A function as the forward of a model; given the model's site first where there is one."""

    def __init__(self, function, site=None):
        super().__init__()
        self.function = function
        self.site = site

    def forward(self, *tensors):
        return self.function(*tensors) if self.site is None else self.function(self.site, *tensors)


def network(num_parameters=1, *, frozen=False):
    torch.manual_seed(0)
    hardness = torch.linspace(1.2, 4, num_parameters)
    model = nn.Sequential(nn.Linear(4, 6), LambdaGELU(num_parameters, init_hardness=hardness), nn.Linear(6, 3))
    if frozen:
        model[1].freeze_hardness()
        model[1].set_hardness(0.7)
    return model


def exported(model, *tensors, strict=False, **options):
    return export(model, tensors, strict=strict, **options)


def called_ops(program):
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


def same_bits(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


# --- what a program computes -----------------------------------------------------------------------------------------


@STRICT
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_a_program_computes_what_the_model_computes_at_any_batch(training, strict):
    model = network_of_every_kind().train(training)
    program = exported(model, torch.randn(5, 4), strict=strict, dynamic_shapes=({0: Dim.AUTO},))
    assert called_ops(program).count(OP) == 4
    for batch in (1, 5, 8):
        x = torch.randn(batch, 4)
        same_bits(program.module()(x), model(x))


def test_batch_and_channels_may_both_be_dynamic():
    def per_channel(x, hardness):
        return lambda_gelu.lambda_gelu(x, hardness)

    batch, channels = Dim("batch", min=1), Dim("channels", min=2)
    program = exported(
        Forward(per_channel),
        torch.randn(5, 4, 3),
        torch.ones(4),
        dynamic_shapes=(({0: batch, 1: channels}, {0: channels}),),
    )
    x, hardness = torch.randn(2, 7, 3), torch.linspace(1, 3, 7)
    same_bits(program.module()(x, hardness), lambda_gelu.lambda_gelu(x, hardness))


@STRICT
def test_sizes_may_depend_on_data(strict):
    def unbacked(x, hardness):
        rows = x[x[:, 0] > 0]
        channels = torch.nonzero(hardness > 1).flatten()
        return lambda_gelu.lambda_gelu(rows[:, channels], hardness[channels])

    program = exported(Forward(unbacked), torch.randn(5, 4), torch.linspace(0.5, 2, 4), strict=strict)
    x, hardness = torch.randn(5, 4), torch.tensor([0.5, 3, 4, 0.1])
    same_bits(program.module()(x, hardness), unbacked(x, hardness))


@STRICT
@pytest.mark.parametrize(
    ("function", "tensors"),
    [
        (lambda x: lambda_gelu.lambda_gelu(x, 2.5), 0),
        (lambda_gelu.lambda_gelu, 1),
        (lambda x, raw: lambda_gelu.softplus_lambda_gelu(x, raw, temperature=0.1), 1),
    ],
    ids=["float", "tensor", "raw"],
)
def test_the_functions_export(function, tensors, strict):
    arguments = (torch.randn(5, 4), torch.tensor([1.5]))[: 1 + tensors]
    program = exported(Forward(function), *arguments, strict=strict)
    assert called_ops(program).count(OP) == 1
    same_bits(program.module()(*arguments), function(*arguments))


def test_a_model_that_was_swapped_exports_without_the_op():
    model = network()
    lambda_gelu.to_relu_(model)
    ops = called_ops(exported(model, torch.randn(5, 4)))
    assert OP not in ops
    assert torch.ops.aten.relu.default in ops


# --- how λ is held ---------------------------------------------------------------------------------------------------


def test_lambda_is_a_parameter_of_the_program_and_trains_as_in_the_model():
    model = network(6)
    x = torch.randn(5, 4)
    program = exported(model, x)
    assert "1.raw_hardness" in program.state_dict
    trained = program.module()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, trained)]
    for _ in range(3):
        for each, optimizer in zip((model, trained), optimizers, strict=True):
            optimizer.zero_grad()
            each(x).square().sum().backward()
            optimizer.step()
    for name, parameter in trained.named_parameters():
        same_bits(parameter, model.get_parameter(name))
    assert not torch.equal(model[1].raw_hardness, network(6)[1].raw_hardness)


def test_a_frozen_lambda_stands_still_in_the_program():
    x = torch.randn(5, 4)
    trained = exported(network(frozen=True), x).module()
    before = trained(x).detach()
    optimizer = torch.optim.SGD([trained.get_parameter("1.raw_hardness")], lr=1e3, momentum=0.9, weight_decay=0.1)
    trained(x).square().sum().backward()
    assert trained.get_parameter("1.raw_hardness").grad.tolist() == [0]
    optimizer.step()
    same_bits(trained(x).detach(), before)


@STRICT
@pytest.mark.parametrize("copied", [False, True])
def test_a_write_into_the_override_that_no_forward_has_seen_is_in_the_program(copied, strict):
    learned, frozen, x = LambdaGELU(), LambdaGELU(), torch.randn(5)
    frozen.freeze_hardness()
    if copied:
        learned, frozen = copy.deepcopy(learned), copy.deepcopy(frozen)
    learned.hardness_override.fill_(3.0)  # as torch.optim.swa_utils.AveragedModel does
    frozen.hardness_override.fill_(float("nan"))
    programs = [exported(site, x, strict=strict).module() for site in (learned, frozen)]
    same_bits(programs[0](x), lambda_gelu.lambda_gelu(x, 3.0))
    same_bits(programs[1](x), LambdaGELU()(x))


def test_a_program_unflattens_into_modules_with_the_same_parameters():
    model = network(6)
    x = torch.randn(5, 4)
    unflattened = torch.export.unflatten(exported(model, x))
    same_bits(unflattened(x), model(x))
    same_bits(unflattened.get_parameter("1.raw_hardness"), model[1].raw_hardness)


# --- passes and files ------------------------------------------------------------------------------------------------


def test_decompositions_leave_the_op_whole_and_replace_it_on_request():
    model = network(6)
    x = torch.randn(5, 4)
    program = exported(model, x)
    core = program.run_decompositions()
    assert OP in called_ops(core)
    same_bits(core.module()(x), model(x))

    def by_gelu(x, raw_hardness, channel_dim=1, temperature=None):
        hardness = 1 + nn.functional.softplus(raw_hardness / temperature)
        return nn.functional.gelu(x * hardness) / hardness

    replaced = program.run_decompositions({OP: by_gelu})
    assert OP not in called_ops(replaced)
    torch.testing.assert_close(replaced.module()(x), model(x))


LOAD = """
import torch{imports}
program = torch.export.load({path!r}).module()
x, y = torch.load({values!r})
assert torch.equal(program(x), y)
"""


def test_a_saved_program_needs_only_an_import_of_lambda_gelu(tmp_path):
    model = network(6)
    x = torch.randn(5, 4)
    path, values = str(tmp_path / "model.pt2"), str(tmp_path / "values.pt")
    torch.export.save(exported(model, x), path)
    torch.save((x, model(x).detach()), values)
    loaded = torch.export.load(path)
    same_bits(loaded.module()(x), model(x))
    same_bits(loaded.state_dict["1.raw_hardness"], model[1].raw_hardness)

    fresh = run_python(LOAD.format(imports=", lambda_gelu", path=path, values=values))
    assert fresh.returncode == 0, fresh.stderr
    without = run_python(LOAD.format(imports="", path=path, values=values))
    assert without.returncode != 0
    assert "lambda_gelu.lambda_gelu" in without.stderr
    assert "import the custom op" in without.stderr


# --- what is refused -------------------------------------------------------------------------------------------------


def set_hardness(site, x):
    site.set_hardness(2.0)
    return site(x)


def set_hardness_from_data(site, x):
    site.set_hardness(1 + x.abs().max())
    return site(x)


def freeze_hardness(site, x):
    site.freeze_hardness()
    return site(x)


def unfreeze_hardness(site, x):
    site.unfreeze_hardness()
    return site(x)


@STRICT
@pytest.mark.parametrize("frozen", [False, True], ids=["learned", "frozen"])
@pytest.mark.parametrize("change", [set_hardness, set_hardness_from_data, freeze_hardness, unfreeze_hardness])
def test_changing_lambda_inside_an_exported_forward_is_refused(change, frozen, strict):
    site = LambdaGELU()
    if frozen:
        site.freeze_hardness()
    before = site.hardness.tolist()
    with pytest.raises(Exception, match="hardness checks the values of λ and cannot be exported: call it before"):
        exported(Forward(change, site), torch.randn(5), strict=strict)
    assert (site.is_frozen, site.hardness.tolist()) == (frozen, before)


@STRICT
def test_a_lambda_read_from_a_tensor_is_refused(strict):
    function = Forward(lambda x, hardness: lambda_gelu.lambda_gelu(x, hardness.item()))
    with pytest.raises(Exception, match=r"number read from a tensor .*: give the tensor itself, of shape \(1,\)"):
        exported(function, torch.randn(5), torch.ones(1), strict=strict)


@STRICT
def test_a_float_lambda_is_checked_as_ever(strict):
    with pytest.raises(Exception, match=r"hardness must be finite and positive, got -1\.0"):
        exported(Forward(lambda x: lambda_gelu.lambda_gelu(x, -1.0)), torch.randn(5), strict=strict)


@STRICT
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_value_of_lambda_may_be_used_but_is_not_read(dtype, strict):
    def scaled(site, x):
        return site(x) * site.hardness

    site, x = LambdaGELU(dtype=dtype), torch.randn(5, dtype=dtype)
    program = exported(Forward(scaled, site), x, strict=strict)
    torch.testing.assert_close(program.module()(x), scaled(site, x))
    assert torch.ops.aten.item.default not in called_ops(program)
