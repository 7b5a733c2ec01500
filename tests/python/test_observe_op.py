"""The operator that counts pre-activations: values, layouts, transforms, compilation, what its histogram predicts."""

import math

import pytest
import torch
from torch import nn

import lambda_gelu
from lambda_gelu import _C

observe = torch.ops.lambda_gelu.observe_.default

ALL_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.usefixtures("device")
on_the_cpu = pytest.mark.only("cpu")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.compiler.reset()


LAYOUTS = {
    "contiguous": lambda: torch.randn(4, 6, 5, 3),
    "channels_last": lambda: torch.randn(4, 6, 5, 3).contiguous(memory_format=torch.channels_last),
    "permuted": lambda: torch.randn(5, 3, 4, 6).permute(2, 3, 0, 1),
    "chunk": lambda: torch.randn(4, 12, 5, 3).chunk(2, 1)[1],
    "every second": lambda: torch.randn(4, 6, 5, 6)[..., ::2],
    "expanded": lambda: torch.randn(4, 1, 5, 1).expand(4, 6, 5, 3),
    "empty": lambda: torch.randn(4, 6, 0, 3),
}


def tables(rows=1):
    return torch.zeros(rows, 256, dtype=torch.int64), torch.zeros(rows, 4, dtype=torch.float64)


def counted(x):
    """Counts and moments of all elements, by a search among the edges and sums in float64."""
    x = x.detach().double().flatten()
    finite = x[torch.isfinite(x)]
    edges = torch.tensor(_C.histogram_edges()[1:-1], dtype=torch.float64)
    bins = torch.bucketize(finite.abs(), edges, right=True) + 128 * (finite <= 0)
    relu = finite.clamp_min(0)
    sums = [finite.sum(), finite.square().sum(), relu.square().sum(), torch.tensor(len(x) - len(finite))]
    return torch.bincount(bins, minlength=256), torch.stack([s.double() for s in sums])


def check(x, counts, moments, channel_dim=None):
    rows = [x] if channel_dim is None else x.unbind(channel_dim)
    for row, row_counts, row_moments in zip(rows, counts, moments, strict=True):
        expected_counts, expected_moments = counted(row)
        assert torch.equal(row_counts, expected_counts)
        torch.testing.assert_close(row_moments, expected_moments, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_and_sums_in_every_layout_and_channel_dimension(layout, dtype):
    x = LAYOUTS[layout]().to(dtype)
    counts, moments = tables()
    observe(x, counts, moments, 99)  # one row: the dimension is ignored
    check(x, counts, moments)
    for channel_dim in range(-4, 4):
        counts, moments = tables(x.size(channel_dim))
        observe(x, counts, moments, channel_dim)
        check(x, counts, moments, channel_dim)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_zeros_are_not_positive_and_what_is_not_finite_is_counted_apart(dtype):
    x = torch.tensor([0.0, -0.0, 1e-7, -1e-7, math.nan, math.inf, -math.inf, 300.0, -1.5], dtype=dtype)
    counts, moments = tables()
    observe(x, counts, moments)
    check(x, counts, moments)
    assert counts[0, :128].sum() == 2  # 1e-7 and 300
    assert counts[0, 128:].sum() == 4
    assert moments[0, 3] == 3


def test_it_adds_and_records_nothing():
    x = torch.randn(3, 5, requires_grad=True)
    counts, moments = tables()
    observe(x, counts, moments)
    with torch.inference_mode():
        observe(x, counts, moments)
    assert counts.sum() == 30
    assert not moments.requires_grad
    x.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    """Schema, autograd registration, fake tensors and AOT dispatch, as torch.compile needs them."""
    x = LAYOUTS[layout]()
    torch.library.opcheck(observe, (x.detach().requires_grad_(), *tables()))
    torch.library.opcheck(observe, (x, *tables(6), 1))
    torch.library.opcheck(observe, (x.to(torch.bfloat16), *tables(3), -1))


@on_the_cpu
@pytest.mark.parametrize(("shape", "rows"), [((1_000_003,), 1), ((4001, 77), 77), ((7, 33, 61, 5), 33)], ids=str)
def test_the_same_bits_on_any_number_of_threads_and_every_instruction_set(shape, rows):
    x = torch.randn(shape)
    threads = torch.get_num_threads()
    results = []
    try:
        for target in _C.cpu_targets():
            _C.set_cpu_target(target)
            for number in (1, 2, 3):
                torch.set_num_threads(number)
                results.append(tables(rows))
                observe(x, *results[-1])
    finally:
        torch.set_num_threads(threads)
        _C.set_cpu_target("")
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


# --- transforms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 5])
def test_under_vmap_all_examples_count_together(rows):
    x, weight = torch.randn(7, 5), torch.randn(5)
    counts, moments = tables(rows)

    def loss(x, weight):
        hidden = x * weight
        observe(hidden, counts, moments, 0)
        return lambda_gelu.lambda_gelu(hidden, 2.0).sum()

    gradients = torch.func.vmap(torch.func.grad(loss, 1), (0, None))(x, weight)
    check(x * weight, counts, moments, None if rows == 1 else 1)
    expected = torch.func.vmap(torch.func.grad(lambda x, w: lambda_gelu.lambda_gelu(x * w, 2.0).sum(), 1), (0, None))
    assert torch.equal(gradients, expected(x, weight))


def test_tables_that_vmap_maps_over_are_refused():
    counts, moments = torch.zeros(7, 1, 256, dtype=torch.int64), torch.zeros(7, 1, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="counts and moments, which must not be mapped"):
        torch.func.vmap(observe)(torch.randn(7, 5), counts, moments)


class Observed(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.linear = nn.Linear(8, 6)
        self.counts, self.moments = tables(rows)

    def forward(self, x):
        hidden = self.linear(x)
        observe(hidden, self.counts, self.moments, -1)
        return lambda_gelu.lambda_gelu(hidden, 2.0)


@pytest.mark.parametrize(("backend", "rows"), [("aot_eager", 1), ("aot_eager", 6), ("inductor", 1)])
def test_compiled_it_counts_the_same_in_one_graph_and_leaves_the_gradients_alone(backend, rows):
    model = Observed(rows)
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    xs = [torch.randn(n, 8) for n in (4, 5, 4)]
    for x in xs:
        compiled(x).sum().backward()
    counts, moments = model.counts.clone(), model.moments.clone()
    gradients = [p.grad.clone() for p in model.parameters()]

    model.zero_grad()
    model.counts.zero_()
    model.moments.zero_()
    for x in xs:
        model(x).sum().backward()
    # The matrix product of compiled code may round differently: a value near an edge may change its bin.
    assert (counts - model.counts).abs().sum() <= 4
    assert counts.sum() == model.counts.sum()
    torch.testing.assert_close(moments, model.moments, rtol=1e-5, atol=1e-5)
    for compiled_gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(compiled_gradient, parameter.grad)


# --- what the histogram predicts -------------------------------------------------------------------------------------


def direct_ser_db(x, hardness):
    x = x.double()
    relu = x.clamp_min(0)
    error = relu - x * 0.5 * torch.erfc(-hardness * x / math.sqrt(2))
    return 10 * math.log10(relu.square().sum() / error.square().sum())


@on_the_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_predicted_ser_is_within_a_tenth_of_a_decibel_of_the_measured_one(dtype):
    samples = {
        "normal": torch.randn(300_000),
        "shifted": torch.randn(300_000) * 0.6 - 0.7,
        "heavy tails": torch.distributions.Laplace(0.1, 0.5).sample((300_000,)),
        "two humps": torch.cat([torch.randn(200_000) * 0.3 - 1, torch.randn(100_000) * 0.5 + 0.8]),
    }
    for name, sample in samples.items():
        x = sample.to(dtype)
        counts, moments = tables()
        observe(x, counts, moments)
        sum_, sq_sum, sq_sum_relu, nonfinite = moments[0].tolist()
        histogram = _C.Histogram(counts[0].tolist(), sum_, sq_sum, sq_sum_relu, int(nonfinite))
        for kappa in (0.5, 1, 2, 4, 8, 16, 32, 64):
            hardness = kappa / histogram.std()
            assert histogram.ser_db(hardness) == pytest.approx(direct_ser_db(x, hardness), abs=0.1), (name, kappa)


# --- refusals --------------------------------------------------------------------------------------------------------


@on_the_cpu
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(2, 3, dtype=torch.int32)}, TypeError, "input must be float32.*got int32"),
        ({"x": torch.ones(2, 3).to_sparse()}, TypeError, "input must be a dense tensor"),
        ({"x": torch.nested.nested_tensor([torch.ones(2)])}, TypeError, "input must be a dense tensor.*nested"),
        ({"counts": torch.zeros(1, 256)}, TypeError, "counts must be int64, got float32"),
        ({"moments": torch.zeros(1, 4)}, TypeError, "moments must be float64, got float32"),
        ({"counts": torch.zeros(1, 128, dtype=torch.int64)}, ValueError, r"counts must have shape \(rows, 256\)"),
        ({"counts": torch.zeros(5, 256, dtype=torch.int64)}, ValueError, "moments must have as many rows.*5, got 1"),
        ({"channel_dim": 2, "rows": 3}, ValueError, r"channel_dim must be in \[-2, 1\].*got 2"),
        ({"channel_dim": 0, "rows": 3}, ValueError, r"1 or 2 rows \(input.size\(0\)\), got 3"),
        ({"counts": torch.zeros(1, 512, dtype=torch.int64)[:, ::2].expand(2, 256)}, ValueError, "counts must be cont"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, error, words):
    counts, moments = tables(change.get("rows", 1))
    arguments = {"x": torch.ones(2, 3), "counts": counts, "moments": moments, "channel_dim": 1} | change
    with pytest.raises(error, match=words):
        observe(arguments["x"], arguments["counts"], arguments["moments"], arguments["channel_dim"])
    assert counts.sum() == 0
    assert moments.sum() == 0


def test_tables_on_another_device_are_refused():
    counts, moments = tables()
    with pytest.raises(RuntimeError, match="counts must be on input's device"):
        observe(torch.ones(2, device="meta"), counts, moments)


@on_the_cpu
def test_histogram_takes_256_counts():
    with pytest.raises(ValueError, match="counts must have 256 values, got 3"):
        _C.Histogram([1, 2, 3])
    with pytest.raises(ValueError, match="empty"):
        _C.Histogram().ser_db(2.0)
