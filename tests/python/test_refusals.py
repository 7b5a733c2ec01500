"""What is refused, in which words, and that nothing is silently computed wrong instead."""

import math

import pytest
import torch
from torch.nn import functional as F

import lambda_gelu
from lambda_gelu import LambdaGELU, softplus_lambda_gelu

pytestmark = pytest.mark.usefixtures("device")

backward = torch.ops.lambda_gelu.lambda_gelu_backward
backward_inplace = torch.ops.lambda_gelu.lambda_gelu_backward_

SUPPORTED = "input must be float32, float64, bfloat16 or float16, got "
REFUSED_INPUTS = {
    "int64": (lambda: torch.ones(2, 3, dtype=torch.int64), SUPPORTED + "int64"),
    "bool": (lambda: torch.ones(2, 3, dtype=torch.bool), SUPPORTED + "bool"),
    "complex": (lambda: torch.ones(2, 3, dtype=torch.complex64), SUPPORTED + "complex64"),
    "float8": (lambda: torch.ones(2, 3).to(torch.float8_e5m2), SUPPORTED + "float8_e5m2"),
    "sparse": (lambda: torch.ones(2, 3).to_sparse(), "input must be a dense tensor, got layout Sparse"),
    "sparse CSR": (lambda: torch.ones(2, 3).to_sparse_csr(), "input must be a dense tensor, got layout SparseCsr"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8), SUPPORTED + "quint8"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "input must be a dense tensor, got a nested tensor",
    ),
    "nested, jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "input must be a dense tensor, got a nested tensor",
    ),
    "MKL-DNN": (lambda: torch.ones(2, 3).to_mkldnn(), "input must be a dense tensor, got layout Mkldnn"),
    "None": (lambda: None, "input must be a "),
    "a list": (lambda: [1.0], "input must be a Tensor, got list"),
}


ON_THE_CPU_ONLY = ("quantized", "MKL-DNN")  # PyTorch has no such tensors elsewhere


def site(frozen):
    site = LambdaGELU()
    if frozen:
        site.freeze_hardness()
    return site


CALLS = {
    "a float": lambda x: lambda_gelu.lambda_gelu(x, 1.0),
    "a tensor": lambda x: lambda_gelu.lambda_gelu(x, torch.ones(1)),
    "a temperature": lambda x: softplus_lambda_gelu(x, torch.ones(1), temperature=0.1),
    "a module": lambda x: site(frozen=False)(input=x),
    "a frozen module": lambda x: site(frozen=True)(input=x),
}
GRAD_MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", GRAD_MODES)
@pytest.mark.parametrize("kind", REFUSED_INPUTS)
def test_refuses_inputs(kind, mode, on_cuda):
    if on_cuda and kind in ON_THE_CPU_ONLY:
        pytest.skip("PyTorch has no such tensors there")
    make, message = REFUSED_INPUTS[kind]
    calls = list(CALLS.values())
    for call in calls[:1] if kind == "a list" else calls:  # a list goes no further than torch's own check
        with GRAD_MODES[mode](), pytest.raises(TypeError) as error:
            call(make())
        assert message in str(error.value)


SPECIAL_LAYOUTS = {
    "sparse": (lambda t: t.to_sparse(), "layout Sparse"),
    "sparse CSR": (lambda t: torch.eye(2).to_sparse_csr(), "layout SparseCsr"),
    "sparse BSC": (lambda t: torch.eye(2).to_sparse_bsc((1, 1)), "layout SparseBsc"),
    "nested": (lambda t: torch.nested.nested_tensor([t.flatten(), torch.ones(2)]), "a nested tensor"),
    "nested, jagged": (
        lambda t: torch.nested.nested_tensor([t.flatten(), torch.ones(2)], layout=torch.jagged),
        "a nested tensor",
    ),
    "MKL-DNN": (lambda t: t.to_mkldnn(), "layout Mkldnn"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", GRAD_MODES)
@pytest.mark.parametrize("argument", ["grad_output", "input", "hardness"])
@pytest.mark.parametrize("kind", SPECIAL_LAYOUTS)
def test_refuses_layouts_of_every_tensor(kind, argument, mode, on_cuda):
    if on_cuda and kind in ON_THE_CPU_ONLY:
        pytest.skip("PyTorch has no such tensors there")
    make, message = SPECIAL_LAYOUTS[kind]
    arguments = {"grad_output": torch.ones(2, 3), "input": torch.ones(2, 3), "hardness": torch.ones(1)}
    arguments[argument] = make(arguments[argument])
    message = f"{argument} must be a dense tensor, got {message}"
    with GRAD_MODES[mode](), pytest.raises(TypeError, match=message):
        backward(**arguments)
    if argument != "grad_output":
        with GRAD_MODES[mode](), pytest.raises(TypeError, match=message):
            lambda_gelu.lambda_gelu(arguments["input"], arguments["hardness"])


class SparseGradient(torch.autograd.Function):
    """The identity, with a sparse gradient: the one layout that torch's engine lets through."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.to_sparse()


def test_refuses_a_sparse_gradient():
    y = lambda_gelu.lambda_gelu(torch.randn(2, 2, requires_grad=True), 1.0)
    with pytest.raises(TypeError, match="grad_output must be a dense tensor, got layout Sparse"):
        SparseGradient.apply(y).sum().backward()


REFUSED_HARDNESS = [
    (lambda: torch.ones(32), ValueError, "hardness must have 1 or 64 elements (input.size(1)), got 32"),
    (lambda: torch.ones(0), ValueError, "hardness must have 1 or 64 elements (input.size(1)), got 0"),
    (lambda: torch.ones(64, 1), ValueError, "hardness must have one dimension, got shape [64, 1]"),
    (lambda: torch.tensor(1.0), ValueError, "hardness must have one dimension, got shape []"),
    (lambda: torch.ones(64).long(), TypeError, "hardness must be float32, float64, bfloat16 or float16, got int64"),
    (lambda: torch.ones(64).bool(), TypeError, "got bool"),
    (lambda: torch.ones(64).cfloat(), TypeError, "got complex64"),
    (lambda: torch.ones(64).to_sparse(), TypeError, "hardness must be a dense tensor, got layout Sparse"),
    (lambda: 0.0, ValueError, "hardness must be finite and positive, got 0.0"),
    (lambda: -2, ValueError, "hardness must be finite and positive, got -2"),
    (lambda: math.inf, ValueError, "hardness must be finite and positive, got inf"),
    (lambda: math.nan, ValueError, "hardness must be finite and positive, got nan"),
    (lambda: 1e39, ValueError, "hardness must be finite and positive in torch.float32, got 1e+39"),
    (lambda: 1e-60, ValueError, "hardness must be finite and positive in torch.float32, got 1e-60"),
    (lambda: "1", TypeError, "hardness must be a Tensor or a float, got str"),
    (lambda: True, TypeError, "hardness must be a Tensor or a float, got bool"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED_HARDNESS)
@pytest.mark.parametrize("meta", [False, True])
def test_refuses_hardness(make, error, message, meta):
    hardness = make()
    x = torch.ones(2, 64, 5)
    if meta:
        x = x.to("meta")
        hardness = hardness.to("meta") if isinstance(hardness, torch.Tensor) else hardness
    with pytest.raises(error) as refusal:
        lambda_gelu.lambda_gelu(x, hardness)
    assert message in str(refusal.value)


def test_refuses_a_hardness_on_another_device():
    here = torch.ones(1).device
    with pytest.raises(RuntimeError, match=f"hardness must be on input's device {here}, got meta"):
        lambda_gelu.lambda_gelu(torch.ones(2), torch.ones(1, device="meta"))
    with pytest.raises(RuntimeError, match=f"hardness must be on input's device meta, got {here}"):
        lambda_gelu.lambda_gelu(torch.ones(2, device="meta"), torch.ones(1))


@pytest.mark.parametrize("channel_dim", [3, -4, 100])
def test_refuses_channel_dim(channel_dim):
    x = torch.ones(2, 64, 5)
    message = rf"channel_dim must be in \[-3, 2\] for an input of shape \[2, 64, 5\], got {channel_dim}"
    with pytest.raises(ValueError, match=message):
        lambda_gelu.lambda_gelu(x, torch.ones(64), channel_dim=channel_dim)
    with pytest.raises(ValueError, match=message):
        softplus_lambda_gelu(x, torch.ones(64), temperature=1.0, channel_dim=channel_dim)


def test_refuses_several_hardnesses_for_an_input_without_dimensions():
    with pytest.raises(ValueError, match="hardness must have 1 element for an input without dimensions, got 3"):
        lambda_gelu.lambda_gelu(torch.tensor(1.0), torch.ones(3))


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.inf, math.nan])
@pytest.mark.parametrize("meta", [False, True])
def test_refuses_temperature(temperature, meta):
    place = {"device": "meta"} if meta else {}
    with pytest.raises(ValueError, match=f"temperature must be finite and positive, got {temperature:g}"):
        softplus_lambda_gelu(torch.ones(2, **place), torch.ones(1, **place), temperature=temperature)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: torch.ones(3, 2), ValueError, r"grad_output must have input's shape \[2, 3\], got \[3, 2\]"),
        (lambda: torch.ones(6), ValueError, r"grad_output must have input's shape \[2, 3\], got \[6\]"),
        (lambda: torch.ones(2, 3).double(), TypeError, "grad_output must be of input's dtype float32, got float64"),
        (
            lambda: torch.ones(2, 3, device="meta"),
            RuntimeError,
            r"grad_output must be on input's device (cpu|cuda:\d), got meta",
        ),
    ],
)
def test_refuses_grad_output(make, error, message):
    with pytest.raises(error, match=message):
        backward(make(), torch.ones(2, 3), torch.ones(1))


def test_a_hardness_that_is_not_finite_and_positive_is_computed_with():
    """In a tensor it cannot be checked without reading it, which would synchronize a device."""
    x = torch.tensor([[-1.0, 2.0, 3.0]])
    y = lambda_gelu.lambda_gelu(x, torch.tensor([math.nan, math.inf, 1.0]))
    assert y[0, 0].isnan()
    assert y[0, 1] == 2
    torch.testing.assert_close(y[0, 2], torch.nn.functional.gelu(torch.tensor(3.0)))


# --- the operator that writes into grad_output -----------------------------------------------------------------------


def test_the_inplace_operator_refuses_what_it_cannot_be_differentiated_for():
    g, x, hardness = torch.ones(2, 3), torch.ones(2, 3), torch.ones(1)
    words = "lambda_gelu_backward_ cannot be differentiated; lambda_gelu_backward can"
    for index in range(3):
        arguments = [g.clone(), x.clone(), hardness.clone()]
        arguments[index].requires_grad_()
        with pytest.raises(RuntimeError, match=words):
            backward_inplace(*arguments)
        arguments = [g.clone(), x.clone(), hardness.clone()]
        with torch.autograd.forward_ad.dual_level():
            arguments[index] = torch.autograd.forward_ad.make_dual(arguments[index], torch.ones_like(arguments[index]))
            with pytest.raises(RuntimeError, match=words):
                backward_inplace(*arguments)
    with pytest.raises(RuntimeError, match=words):
        torch.func.grad(lambda h: backward_inplace(g.clone(), x, h).sum())(hardness)
    assert torch.equal(g, torch.ones(2, 3))


@pytest.mark.parametrize("dims", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0)], ids=str)
def test_the_inplace_operator_refuses_vmap(dims):
    shapes = [(2, 3), (2, 3), (1,)]
    arguments = [torch.ones(shape if dim is None else (4, *shape)) for shape, dim in zip(shapes, dims, strict=True)]
    with pytest.raises(RuntimeError, match=r"lambda_gelu_backward_ writes into grad_output.*lambda_gelu_backward ret"):
        torch.vmap(backward_inplace, in_dims=dims)(*arguments)
    assert torch.equal(arguments[0], torch.ones_like(arguments[0]))


# --- writing to what was saved ---------------------------------------------------------------------------------------

TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(f)(x),
    "vmap of grad": lambda f, x: torch.vmap(torch.func.grad(f))(x),
    "grad of vmap": lambda f, x: torch.func.grad(lambda x: torch.vmap(f)(x).sum())(x),
    "backward": lambda f, x: f(x.clone().requires_grad_()).backward(),
}


@pytest.mark.parametrize("saved", ["input", "hardness"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_write_to_a_saved_tensor_is_noticed_under_every_transform(transform, saved):
    def f(x):
        tensors = {"input": x * 1, "hardness": torch.ones(1) * x.abs().sum()}
        y = lambda_gelu.lambda_gelu(tensors["input"], tensors["hardness"])
        tensors[saved].mul_(2)
        return y.sum()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        TRANSFORMS[transform](f, torch.randn(3, 4))


def test_a_write_of_a_batched_value_to_an_input_that_is_shared_is_refused():
    def f(row, shared):
        y = lambda_gelu.lambda_gelu(shared, 1.0)
        shared.mul_(row)
        return y

    with pytest.raises(RuntimeError, match="vmap: inplace arithmetic"):
        torch.vmap(f, in_dims=(0, None))(torch.randn(3, 4), torch.randn(4))


@pytest.mark.parametrize(
    ("hardness", "hardness_dim", "shape", "channel_dim", "words"),
    [
        (torch.ones(4), None, (3, 4), 1, r"channel_dim must be in \[-1, 0\] for an input of shape \[4\], got 1"),
        (torch.ones(3), 0, (3, 4, 5), 1, r"hardness must have one dimension, got shape \[\]"),
        (torch.ones(3, 1, 1), 0, (3, 4, 5), 1, r"hardness must have one dimension, got shape \[1, 1\]"),
        (torch.ones(4), None, (3, 4, 5), 1, r"hardness must have 1 or 5 elements \(input.size\(1\)\), got 4"),
        (torch.ones(3, 4), 0, (3, 4, 5), -1, r"hardness must have 1 or 5 elements \(input.size\(1\)\), got 4"),
        (torch.ones(3, 2), 0, (3,), 0, "hardness must have 1 element for an input without dimensions, got 2"),
        (torch.ones(2), None, (3,), 0, "hardness must have 1 element for an input without dimensions, got 2"),
    ],
)
def test_vmap_refuses_a_hardness_that_does_not_fit_an_example(hardness, hardness_dim, shape, channel_dim, words):
    """In the words of the operator, about one example."""
    x = torch.ones(shape)
    hardness = hardness.to(x.device)
    with pytest.raises(ValueError, match=words):
        torch.vmap(lambda x, h: lambda_gelu.lambda_gelu(x, h, channel_dim=channel_dim), (0, hardness_dim))(x, hardness)
    with pytest.raises(ValueError, match=words):
        torch.vmap(lambda x, h: backward(x, x, h, channel_dim), (0, hardness_dim))(x, hardness)


# --- inference mode --------------------------------------------------------------------------------------------------


def test_in_inference_mode_tensors_that_require_grad_are_computed_with_and_not_recorded():
    x, hardness = torch.randn(3, requires_grad=True), torch.ones(1, requires_grad=True)
    expected = lambda_gelu.lambda_gelu(x, hardness).detach()
    with torch.inference_mode():
        y = lambda_gelu.lambda_gelu(x, hardness)
        assert not y.requires_grad and y.is_inference()
        assert torch.equal(y, expected)


def test_a_tensor_of_inference_mode_cannot_be_saved_for_backward():
    with torch.inference_mode():
        x, hardness = torch.randn(3), torch.ones(1)
    lambda_gelu.lambda_gelu(x, hardness)
    for arguments in [(x, torch.ones(1, requires_grad=True)), (torch.ones(3, requires_grad=True), hardness)]:
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            lambda_gelu.lambda_gelu(*arguments)


# --- subclasses of Tensor --------------------------------------------------------------------------------------------


class Named(torch.Tensor):
    """Without any method of its own."""


def test_a_plain_subclass_is_kept_as_gelu_keeps_it():
    x = torch.randn(3, 4)
    expected = lambda_gelu.lambda_gelu(x, torch.ones(1))
    for y in (
        lambda_gelu.lambda_gelu(x.as_subclass(Named), torch.ones(1)),
        lambda_gelu.lambda_gelu(x, torch.ones(1).as_subclass(Named)),
        lambda_gelu.lambda_gelu(x.as_subclass(Named), 1.0),
    ):
        assert type(y) is type(F.gelu(x.as_subclass(Named))) is Named
        assert torch.equal(y.as_subclass(torch.Tensor), expected)
    assert type(LambdaGELU()(x.as_subclass(Named))) is Named
    tracked = x.clone().as_subclass(Named).requires_grad_()
    lambda_gelu.lambda_gelu(tracked, torch.ones(1)).sum().backward()
    torch.testing.assert_close(tracked.grad.as_subclass(torch.Tensor), torch.func.grad(lambda x: F.gelu(x).sum())(x))


def test_what_a_torch_function_makes_of_the_call_is_returned():
    class Doubling(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            result = super().__torch_function__(function, types, args, kwargs)
            return result * 2 if function is torch.ops.lambda_gelu.lambda_gelu.default else result

    x = torch.randn(4)
    y = lambda_gelu.lambda_gelu(x.as_subclass(Doubling), torch.ones(1))
    assert torch.equal(y.as_subclass(torch.Tensor), 2 * lambda_gelu.lambda_gelu(x, 1.0))


class Pair(torch.Tensor):
    """Two tensors side by side, to each of which its dispatch applies every operation."""

    @staticmethod
    def __new__(cls, first, second):
        return torch.Tensor._make_wrapper_subclass(cls, first.shape, dtype=first.dtype, device=first.device)

    def __init__(self, first, second):
        self.parts = (first, second)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def part(index):
            def take(value):
                return value.parts[index] if isinstance(value, Pair) else value

            return torch.utils._pytree.tree_map(take, (args, kwargs or {}))

        results = [function(*part(index)[0], **part(index)[1]) for index in range(2)]
        if isinstance(results[0], torch.Tensor):
            return Pair(*results)
        return type(results[0])(Pair(*pair) for pair in zip(*results, strict=True))


def test_a_wrapper_subclass_is_computed_by_its_own_dispatch_forward_and_backward():
    parts = [torch.randn(3, 4), torch.randn(3, 4)]
    raw = torch.randn(1)
    x, pair_raw = Pair(*parts).requires_grad_(), Pair(raw, raw).requires_grad_()
    y = softplus_lambda_gelu(x, pair_raw, temperature=0.5)
    dx, ds = torch.autograd.grad(y, (x, pair_raw), Pair(*(torch.ones(3, 4),) * 2))
    for index, part in enumerate(parts):
        arguments = (part.clone().requires_grad_(), raw.clone().requires_grad_())
        expected = softplus_lambda_gelu(*arguments, temperature=0.5)
        assert torch.equal(y.parts[index], expected)
        gradients = torch.autograd.grad(expected.sum(), arguments)
        assert torch.equal(dx.parts[index], gradients[0]) and torch.equal(ds.parts[index], gradients[1])


class Opaque(Pair):
    """A wrapper that knows no operation."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return NotImplemented


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_a_wrapper_subclass_without_a_rule_is_refused_as_for_gelu(mode):
    opaque = Opaque(torch.ones(2), torch.ones(2))
    for call in (
        lambda: F.gelu(opaque),
        lambda: lambda_gelu.lambda_gelu(opaque, torch.ones(1)),
        lambda: lambda_gelu.lambda_gelu(torch.ones(2), opaque),
        lambda: LambdaGELU()(opaque),
        lambda: site(frozen=True)(opaque),
    ):
        with GRAD_MODES[mode](), pytest.raises(TypeError, match=r"NotImplemented[\s\S]*Opaque"):
            call()


@pytest.mark.filterwarnings("ignore")
def test_a_masked_tensor_is_refused_as_for_gelu():
    masked = torch.masked.masked_tensor(torch.randn(3), torch.tensor([True, False, True]))
    for call in (F.gelu, LambdaGELU(), lambda x: lambda_gelu.lambda_gelu(x, 1.0)):
        with pytest.raises(TypeError, match="MaskedTensor"):
            call(masked)


# --- values that are not what memory holds ---------------------------------------------------------------------------


def test_lazily_negated_and_zero_tensors_are_read_for_what_they_mean():
    z = torch.randn(5, dtype=torch.complex64)
    negated = z.conj().imag
    assert negated.is_neg()
    assert torch.equal(lambda_gelu.lambda_gelu(negated, 1.5), lambda_gelu.lambda_gelu(-z.imag, 1.5))
    zero = torch._efficientzerotensor((5,), device=torch.get_default_device())
    dx, dh = backward(zero, torch.randn(5), torch.ones(1))
    assert not dx.any() and not dh.any()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.randn(5), zero)
        assert not torch.autograd.forward_ad.unpack_dual(lambda_gelu.lambda_gelu(dual, 1.0)).tangent.any()
