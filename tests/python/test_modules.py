"""LambdaGELU as a module: what λ it computes with, freezing, copies, casts."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

import lambda_gelu
from lambda_gelu import LambdaGELU

mpmath = pytest.importorskip("mpmath")

pytestmark = pytest.mark.usefixtures("device")


def reference(x: float, hardness: float) -> float:
    return float(mpmath.mpf(x) * mpmath.ncdf(mpmath.mpf(hardness) * mpmath.mpf(x)))


def reference_hardness(raw: float, temperature: float) -> mpmath.mpf:
    return 1 + mpmath.log1p(mpmath.exp(mpmath.mpf(raw) / mpmath.mpf(temperature)))


def float32(value: mpmath.mpf) -> float:
    return torch.tensor(float(value), dtype=torch.float64).float().item()


# --- construction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0])
def test_the_default_hardness_is_one_plus_log_two_for_any_temperature(temperature):
    assert LambdaGELU(temperature=temperature).hardness.item() == float32(1 + mpmath.log(2))


def test_parameters_and_buffers_are_one_dimensional():
    module = LambdaGELU(5)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {"raw_hardness": (5,)}
    assert {name: tuple(b.shape) for name, b in module.named_buffers()} == {"hardness_override": (5,)}


@pytest.mark.parametrize("init", [1.001, 1.5, 7.978, 300.0])
def test_init_hardness_is_the_hardness(init):
    assert LambdaGELU(3, init_hardness=init).hardness.tolist() == pytest.approx([init] * 3, rel=2e-6)


def test_init_hardness_per_channel():
    values = [1.25, 2.0, 40.0]
    module = LambdaGELU(3, init_hardness=torch.tensor(values), dtype=torch.float64)
    assert module.hardness.tolist() == pytest.approx(values, rel=1e-15)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"num_parameters": 0}, ValueError, "num_parameters must be at least 1, got 0"),
        ({"num_parameters": 2.0}, TypeError, "num_parameters must be an int, got float"),
        ({"num_parameters": True}, TypeError, "num_parameters must be an int, got bool"),
        ({"channel_dim": 1.0}, TypeError, "channel_dim must be an int, got float"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and positive, got 0.0"),
        ({"temperature": -1.0}, ValueError, "temperature must be finite and positive, got -1.0"),
        ({"temperature": math.nan}, ValueError, "temperature must be finite and positive, got nan"),
        ({"temperature": math.inf}, ValueError, "temperature must be finite and positive, got inf"),
        ({"temperature": "1"}, TypeError, "temperature must be a float, got str"),
        ({"init_hardness": 1.0}, ValueError, "a learned hardness must be above 1"),
        ({"init_hardness": 0.0}, ValueError, "hardness must be finite and positive"),
        ({"init_hardness": math.nan}, ValueError, "hardness must be finite and positive"),
        ({"init_hardness": math.inf}, ValueError, "hardness must be finite and positive"),
        ({"init_hardness": "2"}, TypeError, "hardness must be a float or a tensor, got str"),
        ({"num_parameters": 3, "init_hardness": torch.ones(2) * 2}, ValueError, "must have 1 or 3 elements, got 2"),
        ({"init_hardness": 1e30, "dtype": torch.float16}, ValueError, "out of the range of torch.float16"),
        ({"dtype": torch.int32}, TypeError, "dtype must be float32, float64, bfloat16 or float16, got torch.int32"),
        ({"dtype": torch.complex64}, TypeError, "dtype must be float32"),
    ],
)
def test_bad_arguments_are_refused_in_words(arguments, error, words):
    with pytest.raises(error, match=words):
        LambdaGELU(**arguments)


def test_temperature_is_read_only():
    with pytest.raises(AttributeError):
        LambdaGELU().temperature = 0.2


def test_reset_parameters_restores_the_initial_hardness():
    module = LambdaGELU(2, init_hardness=3.0)
    module.set_hardness(9.0)
    module.freeze_hardness()
    module.reset_parameters()
    assert not module.is_frozen
    assert module.hardness.tolist() == LambdaGELU(2, init_hardness=3.0).hardness.tolist()


def test_a_module_from_the_meta_device_materializes():
    module = LambdaGELU(2, init_hardness=3.0, device="meta")
    assert module.raw_hardness.is_meta and "num_parameters=2" in repr(module)
    module.to_empty(device="cpu").reset_parameters()
    assert module.hardness.tolist() == LambdaGELU(2, init_hardness=3.0).hardness.tolist()


@pytest.mark.parametrize("init", [None, 3.0])
def test_a_device_that_is_asked_for_wins_over_the_default_device(init):
    with torch.device("meta"):
        module = LambdaGELU(2, init_hardness=init, device="cpu")
        module.freeze_hardness()
        assert "hardness=" in repr(module)
        module.unfreeze_hardness()
        module.set_hardness(4.0)
        module.reset_parameters()
    assert module.hardness.tolist() == LambdaGELU(2, init_hardness=init).hardness.tolist()


def test_repr_shows_the_hardness_and_whether_it_is_frozen():
    module = LambdaGELU(2, init_hardness=torch.tensor([1.5, 2.5]), channel_dim=-1)
    assert repr(module) == "LambdaGELU(num_parameters=2, hardness=1.5..2.5, temperature=0.1, channel_dim=-1)"
    module.freeze_hardness()
    module.set_hardness(4.0)
    assert repr(module) == "LambdaGELU(num_parameters=2, hardness=4, temperature=0.1, channel_dim=-1, frozen)"


# --- the hardness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_hardness_is_the_float32_rounding_of_the_exact_one(temperature):
    module = LambdaGELU(64, temperature=temperature)
    with torch.no_grad():
        module.raw_hardness.copy_(torch.linspace(-3, 5, 64))
    expected = [float32(reference_hardness(s, temperature)) for s in module.raw_hardness.tolist()]
    assert module.hardness.dtype == torch.float32
    assert module.hardness.tolist() == expected


def test_hardness_of_float64_keeps_double_precision():
    module = LambdaGELU(3, dtype=torch.float64)
    with torch.no_grad():
        module.raw_hardness.copy_(torch.tensor([-1.0, 0.123456789, 2.0]))
    expected = [float(reference_hardness(s, 0.1)) for s in module.raw_hardness.tolist()]
    assert module.hardness.dtype == torch.float64
    assert module.hardness.tolist() == pytest.approx(expected, rel=4e-16)


def test_hardness_is_differentiable_with_respect_to_raw_hardness():
    module = LambdaGELU(4, dtype=torch.float64)
    with torch.no_grad():
        module.raw_hardness.copy_(torch.tensor([-0.3, 0.0, 0.2, 4.0]))
    (gradient,) = torch.autograd.grad(module.hardness.sum(), module.raw_hardness)
    expected = [float(mpmath.diff(lambda s: reference_hardness(s, 0.1), s)) for s in module.raw_hardness.tolist()]
    assert gradient.tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 6])
def test_the_forward_uses_exactly_the_hardness_it_shows(dtype, count, on_cuda):
    torch.manual_seed(0)
    module = LambdaGELU(count, dtype=dtype)
    with torch.no_grad():
        module.raw_hardness.copy_(torch.randn(count, dtype=torch.float64) * 0.3)
    x = torch.randn(17, 6, dtype=dtype) * 3
    expected = lambda_gelu.lambda_gelu(x, module.hardness.detach())
    if on_cuda and dtype == torch.float64:
        # The one case in which λ is shown by another softplus, PyTorch's: an ULP of λ is z² of y.
        torch.testing.assert_close(module(x), expected, rtol=1e-13, atol=1e-300)
    else:
        assert torch.equal(module(x), expected)
    module.freeze_hardness()
    assert torch.equal(module(x), expected)


@pytest.mark.only("cpu")
def test_hardness_in_float64_is_that_of_the_kernels_to_the_last_bit():
    torch.manual_seed(0)
    count = 2000
    module = LambdaGELU(count, dtype=torch.float64)
    with torch.no_grad():
        module.raw_hardness.copy_(torch.randn(count, dtype=torch.float64))
    x = torch.randn(2, count, dtype=torch.float64)
    assert torch.equal(module(x), lambda_gelu.lambda_gelu(x, module.hardness.detach()))
    (grad,) = torch.autograd.grad(module.hardness.sum(), module.raw_hardness)
    torch.testing.assert_close(grad, torch.sigmoid(module.raw_hardness.detach() / 0.1) / 0.1, rtol=1e-13, atol=1e-300)


def test_forward_is_x_times_the_normal_distribution_of_hardness_times_x():
    module = LambdaGELU(2, init_hardness=torch.tensor([1.5, 6.0]), dtype=torch.float64)
    x = torch.linspace(-4, 4, 42, dtype=torch.float64).reshape(21, 2)
    expected = [[reference(v, h) for v, h in zip(row, [1.5, 6.0], strict=True)] for row in x.tolist()]
    torch.testing.assert_close(module(x), torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize(("shape", "channel_dim"), [((2, 3, 4, 5), 1), ((2, 4, 3), -1), ((3,), 0), ((2, 4, 3), 2)])
def test_channel_dim_selects_the_dimension_with_one_hardness_per_index(shape, channel_dim):
    values = [1.5, 3.0, 9.0]
    module = LambdaGELU(3, init_hardness=torch.tensor(values), channel_dim=channel_dim)
    x = torch.randn(shape)
    y = module(x)
    for channel in range(3):
        single = LambdaGELU(init_hardness=values[channel])
        index = torch.tensor([channel])
        expected = single(x.index_select(channel_dim, index))
        torch.testing.assert_close(y.index_select(channel_dim, index), expected, rtol=1e-6, atol=1e-7)


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="3"):
        LambdaGELU(3)(torch.randn(2, 4))


def test_the_hardness_is_learned():
    # The target has a hardness of 4; gradient descent must find it.
    x = torch.linspace(-3, 3, 201)
    target = lambda_gelu.lambda_gelu(x, 4.0)
    module = LambdaGELU()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        (module(x) - target).square().mean().backward()
        optimizer.step()
    assert module.hardness.item() == pytest.approx(4.0, rel=0.01)


# --- set_hardness ----------------------------------------------------------------------------------------------------


def test_set_hardness_of_a_learned_module_writes_raw_hardness():
    module = LambdaGELU(2)
    module.set_hardness(torch.tensor([1.5, 5.0]))
    assert module.hardness.tolist() == pytest.approx([1.5, 5.0], rel=1e-6)
    assert module.hardness_override.isnan().all() and not module.is_frozen


def test_set_hardness_of_a_frozen_module_writes_the_override_exactly():
    module = LambdaGELU(2)
    raw = module.raw_hardness.detach().clone()
    module.freeze_hardness()
    module.set_hardness(torch.tensor([0.5, 7.125]))
    assert module.hardness.tolist() == [0.5, 7.125]
    assert torch.equal(module.raw_hardness, raw)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf, torch.tensor([2.0, math.nan])])
def test_set_hardness_refuses_what_is_no_hardness_and_changes_nothing(frozen, value):
    module = LambdaGELU(2)
    if frozen:
        module.freeze_hardness()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="hardness must be finite and positive"):
        module.set_hardness(value)
    assert_same_state(module.state_dict(), before)


@pytest.mark.parametrize("value", [1.0, 0.5, torch.tensor([2.0, 1.0])])
def test_a_learned_hardness_must_be_above_one(value):
    module = LambdaGELU(2)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=r"above 1.*freeze_hardness"):
        module.set_hardness(value)
    assert_same_state(module.state_dict(), before)


def test_an_override_outside_of_float32_is_refused():
    module = LambdaGELU()
    module.freeze_hardness()
    for value in (1e39, 1e-60):
        with pytest.raises(ValueError, match="float32"):
            module.set_hardness(value)
    assert module.hardness.item() == LambdaGELU().hardness.item()


# --- freezing --------------------------------------------------------------------------------------------------------


def test_freezing_keeps_the_hardness_to_the_last_bit():
    module = LambdaGELU(3, init_hardness=torch.tensor([1.1, 1.7, 5.3]))
    before = module.hardness.detach().clone()
    module.freeze_hardness()
    assert module.is_frozen and torch.equal(module.hardness, before)
    module.freeze_hardness()
    assert torch.equal(module.hardness, before)


def test_a_frozen_gradient_is_zero_even_where_the_loss_overflows():
    module = LambdaGELU()
    module.freeze_hardness()
    (module(torch.tensor([1.0, 2.0])) * math.inf).sum().backward()
    assert module.raw_hardness.grad.tolist() == [0.0]


def test_freezing_leaves_the_gradient_of_the_input_alone():
    x = torch.linspace(-3, 3, 33, dtype=torch.float64, requires_grad=True)
    module = LambdaGELU(init_hardness=2.0, dtype=torch.float64)
    (learned,) = torch.autograd.grad(module(x).sum(), x)
    module.freeze_hardness()
    (frozen,) = torch.autograd.grad(module(x).sum(), x)
    assert torch.equal(learned, frozen)


@pytest.mark.parametrize("raw", [math.nan, math.inf])
def test_a_hardness_that_is_not_finite_cannot_be_frozen(raw):
    module = LambdaGELU(2)
    with torch.no_grad():
        module.raw_hardness[1] = raw
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=f"a hardness must be finite to be frozen; got {raw}"):
        module.freeze_hardness()
    assert not module.is_frozen
    assert_same_state(module.state_dict(), before)


def averaged(source, **options):
    """A copy that torch.optim.swa_utils keeps of a network with one learned site."""
    network = nn.Sequential(nn.Linear(3, 3), source)
    return network, torch.optim.swa_utils.AveragedModel(network, **options)


@pytest.mark.parametrize("use_first", [False, True])
def test_an_averaged_model_follows_freezing_and_unfreezing(use_first):
    # It copies buffers in place, past every method of the module.
    network, average = averaged(LambdaGELU(3))
    x = torch.randn(5, 3)
    for expected in (True, False):
        if use_first:
            average(x)
        if expected:
            network[1].freeze_hardness()
            network[1].set_hardness(8.0)
        else:
            network[1].unfreeze_hardness()
        average.update_parameters(network)
        twin = average.module[1]
        assert twin.is_frozen == expected
        assert torch.equal(twin(x), lambda_gelu.lambda_gelu(x, twin.hardness.detach()))
        if expected:
            assert twin.hardness.tolist() == [8.0] * 3
            assert torch.equal(copy.deepcopy(twin)(x), twin(x))


@pytest.mark.parametrize("first_use", ["forward", "freeze", "unfreeze", "set", "copy", "cast", "repr"])
def test_whatever_uses_a_module_first_sees_an_override_that_was_copied_in_place(first_use):
    module = LambdaGELU(2)
    module.hardness_override.copy_(torch.tensor([3.0, 5.0]))
    x = torch.randn(4, 2)
    hardness = torch.tensor([3.0, 5.0])
    if first_use == "forward":
        assert torch.equal(module(x), lambda_gelu.lambda_gelu(x, hardness))
    elif first_use == "freeze":
        module.freeze_hardness()
        assert torch.equal(module.hardness, hardness)
    elif first_use == "unfreeze":
        module.unfreeze_hardness()
        assert not module.is_frozen
        torch.testing.assert_close(module.hardness.detach(), hardness)
    elif first_use == "set":
        module.set_hardness(0.5)
        assert module.hardness.tolist() == [0.5, 0.5]
    elif first_use == "copy":
        assert torch.equal(copy.deepcopy(module).hardness, hardness)
    elif first_use == "cast":
        assert torch.equal(module.to(torch.float64).hardness, hardness.double())
    else:
        assert repr(module).endswith("frozen)")


def test_an_average_of_buffers_stays_learned_where_it_began_so():
    # An average with NaN is NaN: documented, and the reason to leave use_buffers at False.
    network, average = averaged(LambdaGELU(), use_buffers=True)
    average.update_parameters(network)
    network[1].freeze_hardness()
    average.update_parameters(network)
    assert not average.module[1].is_frozen and average.module[1].hardness.isfinite().all()


def test_a_module_made_in_inference_mode_is_frozen_and_learned():
    x = torch.randn(4)
    with torch.inference_mode():
        module = LambdaGELU()  # its tensors have no version counter
        learned = module(x)
        module.freeze_hardness()
        assert module.is_frozen and torch.equal(module(x), learned)


def test_an_ensemble_under_vmap_is_frozen_as_its_members_are():
    members = [LambdaGELU() for _ in range(2)]
    for number, member in enumerate(members):
        member.freeze_hardness()
        member.set_hardness(2.0 + number)
    x = torch.randn(4)
    parameters, buffers = torch.func.stack_module_state(members)

    def call(parameters, buffers):
        return torch.func.functional_call(members[0], (parameters, buffers), (x,))

    y = torch.vmap(call)(parameters, buffers)
    torch.testing.assert_close(y, torch.stack([member(x) for member in members]))


def test_unfreezing_learns_on_from_the_override():
    module = LambdaGELU(2)
    module.freeze_hardness()
    module.set_hardness(torch.tensor([3.0, 6.0]))
    module.unfreeze_hardness()
    assert not module.is_frozen and module.hardness_override.isnan().all()
    assert module.hardness.tolist() == pytest.approx([3.0, 6.0], rel=1e-6)
    module(torch.randn(5, 2)).sum().backward()
    assert (module.raw_hardness.grad != 0).all()


def test_freezing_and_unfreezing_gives_the_same_bits_back():
    torch.manual_seed(3)
    module = LambdaGELU(100)
    with torch.no_grad():
        module.raw_hardness.normal_()
    before = module.raw_hardness.detach().clone()
    module.freeze_hardness()
    module.unfreeze_hardness()
    assert torch.equal(module.raw_hardness, before)


def test_unfreezing_a_hardness_that_no_raw_hardness_expresses_is_refused():
    module = LambdaGELU(2)
    module.freeze_hardness()
    module.set_hardness(torch.tensor([3.0, 1.0]))
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="above 1"):
        module.unfreeze_hardness()
    assert module.is_frozen
    assert_same_state(module.state_dict(), before)


def test_the_shown_hardness_cannot_be_changed_through_the_copy():
    module = LambdaGELU()
    module.freeze_hardness()
    before = module.hardness.item()
    module.hardness.fill_(99.0)
    assert module.hardness.item() == before


# --- a module like any other -----------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["learned", "frozen"])
def module(request):
    module = LambdaGELU(3, init_hardness=torch.tensor([1.2, 2.3, 3.4]), temperature=0.25, channel_dim=-1)
    if request.param:
        module.freeze_hardness()
        module.set_hardness(torch.tensor([0.7, 4.5, 8.25]))
    return module


def through_torch_save(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch_save],
    ids=["copy", "pickle", "save"],
)
def test_copies_compute_the_same_and_are_independent(module, copied):
    x = torch.randn(4, 3)
    twin = copied(module)
    assert torch.equal(twin(x), module(x))
    assert (twin.temperature, twin.channel_dim, twin.is_frozen) == (0.25, -1, module.is_frozen)
    before = module.hardness.detach().clone()
    twin.set_hardness(17.0)
    assert torch.equal(module.hardness, before)
    assert not torch.equal(twin(x), module(x))


def test_parameters_to_vector_and_back(module):
    network = nn.Sequential(nn.Linear(3, 3), module)
    vector = nn.utils.parameters_to_vector(network.parameters())
    assert vector.numel() == 9 + 3 + 3
    nn.utils.vector_to_parameters(vector * 2, network.parameters())
    assert torch.equal(module.raw_hardness.detach(), (vector * 2)[-3:])


def test_functional_call_replaces_raw_hardness():
    module = LambdaGELU()
    x = torch.randn(7)
    raw = torch.tensor([0.3])
    y = torch.func.functional_call(module, {"raw_hardness": raw}, (x,))
    assert torch.equal(y, lambda_gelu.softplus_lambda_gelu(x, raw, temperature=0.1))


def test_the_parameter_and_the_modes_of_a_module():
    module = LambdaGELU()
    assert isinstance(module, nn.Module) and module.raw_hardness.requires_grad
    assert not module.eval().training
    module.requires_grad_(False)
    assert not module(torch.randn(3)).requires_grad


def assert_same_state(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0, equal_nan=True)
