"""What only a GPU can show: streams, graphs, launches, memory, sizes beyond 2^31, the same bits on every run.

Values, derivatives and refusals on CUDA are the business of test_op.py, test_accuracy.py and their like, which run on
every device.
"""

import contextlib
import copy
import ctypes
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from devices import cuda_lacks
from torch import nn
from torch.profiler import ProfilerActivity as Activity

import lambda_gelu
from lambda_gelu import LambdaGELU, softplus_lambda_gelu

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from gpu import peak_bytes

pytestmark = [pytest.mark.only("cuda"), pytest.mark.usefixtures("device")]

forward = torch.ops.lambda_gelu.lambda_gelu
backward = torch.ops.lambda_gelu.lambda_gelu_backward

ALL_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALF_DTYPES = [torch.bfloat16, torch.float16]
GiB = 2**30
# Long enough for whatever else a test does to be over before: 0.2 s at 2 GHz.
CYCLES = 400_000_000


@pytest.fixture(autouse=True)
def _seed(device):
    torch.manual_seed(0)


def needs_memory(gibibytes):
    free, _ = torch.cuda.mem_get_info()
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    if free < gibibytes * GiB:
        pytest.skip(f"needs {gibibytes} GiB of free GPU memory, found {free / GiB:.1f}")


def hardness_of(count, dtype=torch.float32):
    return (torch.rand(count, dtype=torch.float64) + 1).to(dtype)


# Shape, channel_dim, number of λ: every way in which the kernels cut a tensor, aligned and not.
LAYOUTS = {
    "one": ((300, 1_001), 1, 1),
    "last dimension": ((501, 768), -1, 768),
    "last dimension, odd": ((501, 77), -1, 77),
    "planes": ((5, 9, 32, 32), 1, 9),
    "planes of 49": ((9, 33, 7, 7), 1, 33),
    "planes of 3": ((50, 64, 3), 1, 64),
    "first dimension": ((7, 3_001), 0, 7),
}


def make(layout, dtype):
    """x, grad_output, hardness, channel_dim."""
    shape, channel_dim, count = LAYOUTS[layout]
    return torch.randn(shape).to(dtype) * 2, torch.randn(shape).to(dtype), hardness_of(count), channel_dim


def both_passes(x, g, hardness, channel_dim=1, temperature=None):
    """y, dx, dλ."""
    return forward(x, hardness, channel_dim, temperature), *backward(g, x, hardness, channel_dim, temperature)


def assert_same_bits(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


# --- an independent reference: float64 on the CPU --------------------------------------------------------------------


def exact(x, hardness, channel_dim=1):
    """y, dy/dx and dy/dλ of every element."""
    x, hardness = x.detach().cpu().double(), hardness.detach().cpu().double()
    shape = [1] * x.dim()
    if hardness.numel() > 1:
        shape[channel_dim] = hardness.numel()
    z = x * hardness.reshape(shape)
    gate = torch.erfc(-z * math.sqrt(0.5)) / 2
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return x * gate, gate + z * density, x * x * density


def summed(terms, hardness, channel_dim=1):
    """The terms of every λ, added."""
    if hardness.numel() == 1:
        return terms.sum().reshape(1)
    channel_dim %= terms.dim()
    return terms.sum([dim for dim in range(terms.dim()) if dim != channel_dim])


def assert_sums(actual, terms, hardness, channel_dim=1, tolerance=1e-6):
    """`tolerance` is relative to the sum of the magnitudes: what cancels cannot be more exact than its parts."""
    error = (actual.cpu().double() - summed(terms, hardness, channel_dim)).abs()
    assert (error <= tolerance * summed(terms.abs(), hardness, channel_dim)).all()


def ordered(tensor):
    """Integers in the order of the floating-point numbers, neighbours one apart."""
    bits = tensor.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]).long()
    lowest = {8: -(2**63), 4: -(2**31), 2: -(2**15)}[tensor.element_size()]
    return torch.where(bits < 0, lowest - bits, bits)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_cpu_and_cuda_agree(dtype, layout):
    """In units of the last place: each side is within 9 (y) and 16 (dy/dx) of the exact value, 16-bit types rounded."""
    x, g, hardness, channel_dim = make(layout, dtype)
    here = both_passes(x, torch.ones_like(x), hardness, channel_dim)
    there = both_passes(x.cpu(), torch.ones_like(x).cpu(), hardness.cpu(), channel_dim)
    expected_y, expected_dx, terms = exact(x, hardness, channel_dim)
    shape = [1] * x.dim()
    shape[channel_dim] = -1
    z = x.cpu().double() * hardness.cpu().double().reshape(shape if hardness.numel() > 1 else [1] * x.dim())
    settled = z > -12  # below, either may be 0
    clear = settled & ((z + 0.75179).abs() > 0.1)  # of the zero of dy/dx
    for index, (where, bound) in enumerate(((settled, 18), (clear, 32))):
        distance = (ordered(here[index].cpu()) - ordered(there[index])).abs()[where]
        if dtype in HALF_DTYPES:
            assert distance.max() <= 1
            assert distance.count_nonzero() <= distance.numel() // 200
        else:
            assert distance.max() <= bound
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-6}.get(dtype, 1e-5)
    torch.testing.assert_close(here[0].cpu().double(), expected_y, rtol=2 * torch.finfo(dtype).eps, atol=tolerance)
    torch.testing.assert_close(here[1].cpu().double(), expected_dx, rtol=2 * torch.finfo(dtype).eps, atol=tolerance)
    assert_sums(here[2], terms, hardness, channel_dim)
    assert_sums(backward(g, x, hardness, channel_dim)[1], terms * g.cpu().double(), hardness, channel_dim)


@pytest.mark.parametrize("hardness_dtype", [torch.float32, torch.float64, None], ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_dtypes_of_input_and_hardness_mix(dtype, hardness_dtype):
    x, g, hardness, channel_dim = make("planes of 49", dtype)
    raw = (hardness - 1.5).to(hardness_dtype or dtype)
    y, dx, draw = both_passes(x, g, raw, channel_dim, 0.5)
    assert (y.dtype, dx.dtype, draw.dtype) == (dtype, dtype, raw.dtype)
    shown = 1 + F.softplus(raw.cpu().double() / 0.5)
    expected_y, expected_dx, terms = exact(x, shown, channel_dim)
    rtol = 2 * torch.finfo(dtype).eps
    atol = 1e-13 if dtype == raw.dtype == torch.float64 else 1e-6  # a λ that is not float64 is rounded to float32
    torch.testing.assert_close(y.cpu().double(), expected_y, rtol=rtol, atol=atol)
    torch.testing.assert_close(dx.cpu().double(), expected_dx * g.cpu().double(), rtol=4 * rtol, atol=4 * atol)
    chain = torch.sigmoid(raw.cpu().double() / 0.5) / 0.5
    chained = terms * g.cpu().double() * chain.reshape(1, -1, 1, 1)
    assert_sums(draw, chained, shown, channel_dim, tolerance=1e-6 + torch.finfo(raw.dtype).eps * 2)


@pytest.mark.parametrize("position", [0, 1, 7, 8, 511, 512, 997, 998, 999])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_what_is_not_finite_stays_where_it_is(dtype, position):
    for value in (math.nan, math.inf, -math.inf):
        x, g = torch.ones(1000, dtype=dtype), torch.ones(1000, dtype=dtype)
        hardness = torch.tensor([1.5])
        clean = both_passes(x, g, hardness)
        x[position] = value
        y, dx, dh = both_passes(x, g, hardness)
        others = torch.arange(1000) != position
        assert torch.equal(y[others], clean[0][others]) and torch.equal(dx[others], clean[1][others])
        special = y[position].item(), dx[position].item()
        if math.isnan(value):
            assert all(map(math.isnan, (*special, dh.item())))
        else:
            assert special == ((math.inf, 1.0) if value > 0 else (0.0, 0.0))
            torch.testing.assert_close(dh, clean[2] * (999 / 1000))


@pytest.mark.parametrize(("shape", "count"), [((0,), 1), ((0, 4), 4), ((3, 0, 2), 1), ((3, 4, 0), 4), ((3, 0), 0)])
def test_zero_elements(shape, count):
    x, hardness = torch.empty(shape), torch.ones(count)
    graph, (y, dx, dh) = capture(lambda: both_passes(x, x, hardness))
    graph.replay()
    assert y.shape == dx.shape == x.shape
    assert dh.tolist() == [0.0] * count


def test_tensors_on_different_devices_are_refused():
    x, hardness = torch.ones(3, 4), torch.ones(1)
    with pytest.raises(RuntimeError, match="hardness must be on input's device cuda:0, got cpu"):
        lambda_gelu.lambda_gelu(x, hardness.cpu())
    with pytest.raises(RuntimeError, match="hardness must be on input's device cpu, got cuda:0"):
        lambda_gelu.lambda_gelu(x.cpu(), hardness)
    with pytest.raises(RuntimeError, match="grad_output must be on input's device cuda:0, got cpu"):
        backward(x.cpu(), x, hardness)


# --- where the elements lie ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_the_same_bits_for_any_alignment(dtype, layout):
    x, g, hardness, channel_dim = make(layout, dtype)
    expected = both_passes(x, g, hardness, channel_dim)

    def moved(tensor, offset):
        view = torch.empty(tensor.numel() + 16, dtype=dtype)[offset : offset + tensor.numel()].view(tensor.shape)
        return view.copy_(tensor)

    for x_offset, g_offset in ((1, 0), (0, 1), (3, 3), (1, 2), (8, 5)):
        actual = both_passes(moved(x, x_offset), moved(g, g_offset), hardness, channel_dim)
        assert_same_bits(actual, expected)
        into = moved(g, g_offset)
        dh = torch.ops.lambda_gelu.lambda_gelu_backward_(into, moved(x, x_offset), hardness, channel_dim)
        assert_same_bits((into, dh), expected[1:])


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 255, 256, 257, 2047, 2048, 2049, 16_384, 65_537, 1_048_577])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_nothing_is_written_beyond_the_ends(dtype, size):
    hardness = torch.tensor([1.5])
    guard = torch.full((size + 64,), 3.0, dtype=dtype)
    inside = guard[32 : 32 + size]
    x, g = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    expected_dx, expected_dh = backward(g, x, hardness)
    inside.copy_(g)
    dh = torch.ops.lambda_gelu.lambda_gelu_backward_(inside, x, hardness)
    assert_same_bits((inside, dh), (expected_dx, expected_dh))
    assert (guard[:32] == 3).all() and (guard[32 + size :] == 3).all()


STRIDED = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "permuted": lambda t: t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "sliced": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "chunk": lambda t: torch.cat([t, t], dim=1).chunk(2, dim=1)[1],
    "one row": lambda t: t[:, :, :1],
    "expanded": lambda t: t[:1].expand(t.shape),
}


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("x_layout", STRIDED)
@pytest.mark.parametrize("g_layout", [*STRIDED, "a number expanded"])
def test_strides_of_input_and_gradient(x_layout, g_layout, count):
    hardness = hardness_of(count)
    x = STRIDED[x_layout](torch.randn(5, 6, 7, 8))
    if g_layout == "a number expanded":
        g = torch.randn(()).expand(x.shape)
    else:
        g = STRIDED[g_layout](torch.randn(5, 6, 7, 8))
    g = g[:, :, : x.size(2)].expand(x.shape)
    y, dx, dh = both_passes(x, g, hardness)
    assert y.stride() == dx.stride() == torch.empty_like(x).stride()
    dense = both_passes(x.contiguous(), g.contiguous(), hardness)
    assert torch.equal(y, dense[0]) and torch.equal(dx, dense[1])
    assert_sums(dh, exact(x, hardness)[2] * g.cpu().double(), hardness)
    # The cuts of the sum follow the output's memory, not the operands' strides.
    arranged = torch.empty_like(x).copy_(x), torch.empty_like(x).copy_(g)
    assert torch.equal(dh, backward(arranged[1], arranged[0], hardness)[1])


# --- more than 2^31 elements -----------------------------------------------------------------------------------------

CHUNK = 2**26


def assert_equals_its_chunks(x, g, hardness, channel_dim, chunk):
    """Every element against the same operator on small parts, the places around 2^31 against float64 on the CPU."""
    y = forward(x, hardness, channel_dim)
    rows = range(0, x.size(0), chunk)
    for row in rows:
        assert torch.equal(y[row : row + chunk], forward(x[row : row + chunk], hardness, channel_dim)), f"row {row}"
    del y
    dx, dh = backward(g, x, hardness, channel_dim)
    total = torch.zeros(hardness.numel(), dtype=torch.float64)
    for row in rows:
        part = slice(row, row + chunk)
        chunk_dx, chunk_dh = backward(g[part], x[part], hardness, channel_dim)
        assert torch.equal(dx[part], chunk_dx), f"row {row}"
        total += chunk_dh.double()
    # g is positive, so nothing cancels.
    torch.testing.assert_close(dh.double(), total, rtol=1e-6, atol=0)

    per_row = x[0].numel() if x.dim() > 1 else 1
    for place in (2**31 - 1, 2**31, 2**31 + 1, x.numel() - 1):
        row = slice(place // per_row, place // per_row + 1)
        expected = exact(x[row].float(), hardness, channel_dim)[1] * g[row].cpu().double()
        torch.testing.assert_close(dx[row].cpu().double(), expected, rtol=0.01, atol=1e-3)


def positive(shape):
    return torch.empty(shape, dtype=torch.bfloat16).uniform_(0.5, 1.5)


def normal(shape):
    return torch.empty(shape, dtype=torch.bfloat16).normal_()


@pytest.mark.parametrize(
    ("shape", "channel_dim", "count"),
    [
        ((2**31 + 2**20 + 11,), 0, 1),
        ((2**31 // 768 + 1025, 768), -1, 768),
        ((2**31 // 77 + 1025, 77), -1, 77),
        ((10_710, 64, 56, 56), 1, 64),
        ((685_000, 64, 7, 7), 1, 64),
    ],
    ids=["one", "last dimension", "last dimension, odd", "planes", "planes of 49"],
)
def test_more_than_2_to_the_31_elements(shape, channel_dim, count):
    needs_memory(20)
    assert math.prod(shape) > 2**31 + 2**16
    x, g = normal(shape), positive(shape)
    assert_equals_its_chunks(x, g, hardness_of(count), channel_dim, max(1, CHUNK // math.prod(shape[1:])))


def test_strides_that_reach_beyond_2_to_the_32_elements():
    needs_memory(30)
    count = 2**31 + 2**16 + 1
    base = normal((count, 2))
    x = base[:, 1]
    assert not x.is_contiguous()
    assert_equals_its_chunks(x, positive((count,)), hardness_of(1), 0, CHUNK)


# --- the same bits on every run --------------------------------------------------------------------------------------


@contextlib.contextmanager
def other_work(stream):
    """Keeps another stream busy with matrix products and the allocator with blocks of many sizes."""
    a = torch.randn(1024, 1024)
    stream.wait_stream(torch.cuda.current_stream())
    blocks = []

    def more(i):
        with torch.cuda.stream(stream):
            for _ in range(4):
                torch.mm(a, a)
        blocks.append(torch.empty(1 + (i * 7_919_777) % (32 * 2**20), dtype=torch.uint8).fill_(i % 251))
        if len(blocks) > 5:
            del blocks[i % 5]

    yield more
    torch.cuda.synchronize()


RUNS = {
    "one": ((10_000_019,), 0, 1),
    "last dimension": ((4_001, 770), -1, 770),
    "planes": ((65, 33, 28, 28), 1, 33),
    "planes of 49": ((130, 65, 7, 7), 1, 65),
}


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_the_same_bits_in_100_runs_beside_other_work(dtype, case, temperature):
    shape, channel_dim, count = RUNS[case]
    x, g = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    hardness = hardness_of(count)
    first = both_passes(x, g, hardness, channel_dim, temperature)
    differing = torch.zeros((), dtype=torch.int64)
    with other_work(torch.cuda.Stream()) as more:
        for i in range(100):
            more(i)
            results = both_passes(x, g, hardness, channel_dim, temperature)
            for a, b in zip(results, first, strict=True):
                differing += (a != b).sum()
    assert differing.item() == 0
    assert all(t.isfinite().all() for t in first)  # NaN differs from itself: the loop would have seen it


def test_the_same_bits_from_two_streams_at_a_time():
    x, g, hardness, channel_dim = make("planes of 49", torch.float32)
    expected = both_passes(x, g, hardness, channel_dim)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results = []
    for i in range(40):
        with torch.cuda.stream(streams[i % 2]):
            results.append(both_passes(x, g, hardness, channel_dim))
    torch.cuda.synchronize()
    for result in results:
        assert_same_bits(result, expected)


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def side():
    torch.cuda.synchronize()
    yield torch.cuda.Stream()
    torch.cuda.synchronize()


@pytest.fixture
def operands():
    """x and g as they are, and as they will be; dλ and everything else differs between the two."""
    x, g = torch.randn(2**20), torch.randn(2**20)
    return {"x": x, "g": g, "new x": torch.randn(2**20), "new g": torch.randn(2**20), "hardness": torch.tensor([1.5])}


def poison(*sizes):
    """Leaves NaN in the memory that the current stream's next results will be given."""
    _ = [torch.full((size,), math.nan) for size in sizes]  # freed together, on return


def test_work_on_a_side_stream_comes_after_what_was_queued_there(side, operands):
    expected = both_passes(operands["new x"], operands["new g"], operands["hardness"])
    before = both_passes(operands["x"], operands["g"], operands["hardness"])
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(CYCLES)
        operands["x"].copy_(operands["new x"])
        operands["g"].copy_(operands["new g"])
        # On any other stream these would see the old values, for the time being.
        results = both_passes(operands["x"], operands["g"], operands["hardness"])
    torch.cuda.synchronize()
    assert_same_bits(results, expected)
    assert not any(torch.equal(a, b) for a, b in zip(before, expected, strict=True))


def test_work_on_a_side_stream_does_not_wait_for_the_default_stream(operands):
    arguments = operands["x"], operands["g"], operands["hardness"]
    expected = [t.cpu() for t in both_passes(*arguments)]
    for _ in range(8):  # a stream may share its hardware queue with the default stream, and does wait for it then
        side, slept = torch.cuda.Stream(), torch.cuda.Event()
        with torch.cuda.stream(side):
            poison(2**20, 2**20, 1)
        torch.cuda.synchronize()
        torch.cuda._sleep(CYCLES)
        slept.record()
        with torch.cuda.stream(side):
            results = both_passes(*arguments)
            side.synchronize()
            on_time = not slept.query()
            assert_same_bits([t.cpu() for t in results], expected)
        torch.cuda.synchronize()
        if on_time:
            return
    pytest.fail("the work on the side stream was done only after that on the default stream")


def test_backward_runs_on_the_stream_of_the_forward(side, operands):
    expected = both_passes(operands["new x"], operands["g"], operands["hardness"])
    torch.cuda.synchronize()
    x, hardness = operands["x"].requires_grad_(), operands["hardness"].requires_grad_()
    with torch.cuda.stream(side):
        y = lambda_gelu.lambda_gelu(x, hardness)
        torch.cuda._sleep(CYCLES)
        x.data.copy_(operands["new x"])  # behind autograd's back: a backward that waits for this stream sees it
    dx, dh = torch.autograd.grad(y, (x, hardness), operands["g"])
    torch.cuda.synchronize()
    assert_same_bits((dx, dh), expected[1:])


def streams_of(kernels, function):
    """The numbers of the streams on which the kernels that function() launches run, as CUPTI sees them.

    kernels: a word in their names.
    """
    function()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[Activity.CPU, Activity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    return {
        event.device_resource_id()
        for event in profile.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA and kernels in event.name()
    }


def test_kernels_carry_the_number_of_the_current_stream(side, operands):
    def ours():
        both_passes(operands["x"], operands["g"], operands["hardness"], 1, 0.5)

    def pytorchs():
        F.gelu(operands["x"])

    on_default = streams_of("elementwise", pytorchs)
    if not on_default:
        pytest.skip("the profiler sees no kernels on this machine")
    assert streams_of("lambda_gelu", ours) == on_default
    with torch.cuda.stream(side):
        on_side = streams_of("elementwise", pytorchs)
        assert on_side.isdisjoint(on_default)
        assert streams_of("lambda_gelu", ours) == on_side


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_a_device_that_is_not_the_current_one(dtype):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for layout in LAYOUTS:
        x, g, hardness, channel_dim = make(layout, dtype)
        expected = both_passes(x, g, hardness, channel_dim, 0.5)
        actual = both_passes(x.to("cuda:1"), g.to("cuda:1"), hardness.to("cuda:1"), channel_dim, 0.5)
        assert all(t.device == torch.device("cuda:1") for t in actual)
        assert torch.cuda.current_device() == 0
        if torch.cuda.get_device_capability(0) == torch.cuda.get_device_capability(1):
            assert_same_bits([t.cpu() for t in actual], [t.cpu() for t in expected])
        else:
            assert torch.equal(actual[2].cpu(), expected[2].cpu())
    with pytest.raises(RuntimeError, match="hardness must be on input's device cuda:1, got cuda:0"):
        lambda_gelu.lambda_gelu(x.to("cuda:1"), hardness, channel_dim=channel_dim)


# --- launches and synchronization ------------------------------------------------------------------------------------


def capture(function):
    """Captures function() into a graph: the graph, and the result that every replay writes anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as PyTorch asks: what allocates and initializes does so before the capture
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        result = function()
    return graph, result


def node_types(graph):
    """CUgraphNodeType of every node of a captured graph; 0 is a kernel."""
    driver = ctypes.CDLL("libcuda.so.1")
    handle = ctypes.c_void_p(graph.raw_cuda_graph())
    count = ctypes.c_size_t()
    assert driver.cuGraphGetNodes(handle, None, ctypes.byref(count)) == 0
    nodes = (ctypes.c_void_p * count.value)()
    assert driver.cuGraphGetNodes(handle, nodes, ctypes.byref(count)) == 0
    types = []
    for node in nodes:
        kind = ctypes.c_int(-1)
        assert driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)) == 0
        types.append(kind.value)
    return types


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_launch_forward_and_at_most_two_backward(dtype, layout, temperature):
    x, g, hardness, channel_dim = make(layout, dtype)
    operands = [(x, g), (torch.stack([x, x], -1)[..., 0], g[:1].expand(g.shape))]  # dense, and with strides
    for x_operand, g_operand in operands:
        graph, _ = capture(lambda x=x_operand: forward(x, hardness, channel_dim, temperature))
        assert node_types(graph) == [0]
        graph, _ = capture(lambda x=x_operand, g=g_operand: backward(g, x, hardness, channel_dim, temperature))
        assert node_types(graph) in ([0], [0, 0])


def test_a_module_launches_nothing_more_than_the_operator():
    module, x = LambdaGELU(64), torch.randn(300, 64)
    graph, _ = capture(lambda: module(x))
    assert node_types(graph) == [0]


@contextlib.contextmanager
def without_synchronization():
    """Whatever makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("count", [1, 64])
def test_the_host_never_waits(count):
    module, x = LambdaGELU(count), torch.randn(300, 64, requires_grad=True)
    g, done = torch.ones(300, 64), torch.cuda.Event()

    def step():
        module(x).backward(g)
        lambda_gelu.lambda_gelu(x, 1.5).backward(g)
        softplus_lambda_gelu(x, module.raw_hardness, temperature=0.5).backward(g)

    step()  # the first use of a kernel may load it
    torch.cuda.synchronize()
    with without_synchronization():
        torch.cuda._sleep(CYCLES)
        step()
        done.record()
        came_back_early = not done.query()
    assert came_back_early
    with pytest.raises(RuntimeError, match="synchroniz"), without_synchronization():
        x.sum().item()  # the mode does what the test relies on


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_a_replay_computes_with_the_present_values(dtype, layout):
    x, g, hardness, channel_dim = make(layout, dtype)
    raw = hardness - 1.5
    graph, results = capture(lambda: both_passes(x, g, raw, channel_dim, 0.5))
    for _ in range(3):
        x.normal_()
        g.normal_()
        raw.add_(0.25)
        graph.replay()
        assert_same_bits(results, both_passes(x, g, raw, channel_dim, 0.5))


def test_a_frozen_hardness_can_be_raised_between_replays():
    module, x = LambdaGELU(8), torch.randn(100, 8)
    module.freeze_hardness()
    module.set_hardness(2.0)
    module(x)
    graph, y = capture(lambda: module(x))
    for hardness in (3.0, 8.0):
        module.set_hardness(hardness)
        graph.replay()
        assert torch.equal(y, lambda_gelu.lambda_gelu(x, hardness))


class Scaled(nn.Module):
    """Everything in it is deterministic, matrix products of two libraries' choice are not in it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))
        self.activation = LambdaGELU(16, init_hardness=2.0)

    def forward(self, x):
        return self.activation(x * self.scale)


@pytest.mark.parametrize("graphed", ["step", "whole step with the optimizer"])
def test_a_captured_training_step_trains_as_an_eager_one(graphed):
    x, target = torch.randn(512, 16), torch.randn(512, 16).abs()

    def make_run():
        model = Scaled()
        return model, torch.optim.SGD(lambda_gelu.param_groups(model, lr=0.05), momentum=0.9)

    def gradients(model, optimizer):
        optimizer.zero_grad(set_to_none=False)
        F.mse_loss(model(x), target).backward()

    eager, captured = make_run(), make_run()
    for model, optimizer in (eager, captured):
        gradients(model, optimizer)  # so that the gradients have memory to stay in
        optimizer.step()

    def work():
        gradients(*captured)
        if graphed != "step":
            captured[1].step()

    state = copy.deepcopy(captured[0].state_dict())
    momentum = [kept["momentum_buffer"] for kept in captured[1].state.values()]
    values = [buffer.clone() for buffer in momentum]
    graph, _ = capture(work)
    captured[0].load_state_dict(state)  # the runs before the capture have trained
    for buffer, value in zip(momentum, values, strict=True):
        buffer.copy_(value)
    first = captured[0].activation.hardness.detach().clone()
    for _ in range(10):
        x.normal_()
        gradients(*eager)
        eager[1].step()
        graph.replay()
        if graphed == "step":
            captured[1].step()
    assert_same_bits(captured[0].state_dict().values(), eager[0].state_dict().values())
    assert not torch.equal(captured[0].activation.hardness, first)


def test_compiles_with_the_default_backend():
    pytest.importorskip("triton")
    torch._dynamo.reset()
    # In float64, where the compiler's own order of operations does not show.
    module, x = LambdaGELU(64, dtype=torch.float64), torch.randn(300, 64, dtype=torch.float64)

    def loss(x):
        return (module(x * 2) * 3).square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    results = []
    for function in (compiled, loss):
        inputs = x.clone().requires_grad_()
        value = function(inputs)
        results.append((value, *torch.autograd.grad(value, (inputs, module.raw_hardness))))
    torch.testing.assert_close(*results)
    torch._dynamo.reset()


# --- memory ----------------------------------------------------------------------------------------------------------


# Elements that a partial sum of 8 bytes is made of, at least.
FOR_A_SUM = {
    (2**26,): {torch.float32: 2**13, torch.bfloat16: 2**13},
    (2**16, 768): {torch.float32: 128, torch.bfloat16: 64},
    (256, 64, 56, 56): {torch.float32: 1700, torch.bfloat16: 2200},
    (4096, 256, 7, 7): {torch.float32: 128, torch.bfloat16: 64},
}


@pytest.mark.parametrize("shape", FOR_A_SUM, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peak_memory_is_that_of_gelu_and_the_partial_sums(dtype, shape):
    x, g = torch.randn(shape, dtype=dtype).requires_grad_(), torch.randn(shape, dtype=dtype)
    channels = shape[1] if len(shape) > 1 else 1
    raw = torch.zeros(channels, requires_grad=True)

    def ours():
        y = softplus_lambda_gelu(x, raw, temperature=0.5)
        return torch.autograd.grad(y, (x, raw), g)

    def pytorchs():
        return torch.autograd.grad(F.gelu(x), x, g)

    def ours_forward():
        with torch.no_grad():
            return softplus_lambda_gelu(x, raw, temperature=0.5)

    def pytorchs_forward():
        with torch.no_grad():
            return F.gelu(x)

    assert peak_bytes(ours_forward) <= peak_bytes(pytorchs_forward)
    sums = 8 * x.numel() // FOR_A_SUM[shape][dtype]
    assert peak_bytes(ours) < peak_bytes(pytorchs) + max(2**20, sums + 2**14)  # dλ, and what the allocator rounds up


def test_out_of_memory_in_backward_is_pytorchs_error_and_leaves_everything_as_it_was():
    needs_memory(6)
    count = 2**27  # half a GiB of float32
    x = torch.randn(count, requires_grad=True)
    hardness = torch.tensor([1.5], requires_grad=True)
    g = torch.randn(count)
    y = lambda_gelu.lambda_gelu(x, hardness)
    expected = [t.clone() for t in torch.autograd.grad(y, (x, hardness), g, retain_graph=True)]
    kept = [t.detach().clone() for t in (x, g, y)]
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**24) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.autograd.grad(y, (x, hardness), g, retain_graph=True)
        torch.cuda.synchronize()  # nothing has gone wrong on the device
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_same_bits((x.detach(), g, y.detach()), kept)
    assert x.grad is None and hardness.grad is None
    assert_same_bits(torch.autograd.grad(y, (x, hardness), g), expected)


def test_gradient_reuse_saves_the_memory_of_dx():
    x, raw = torch.randn(2**24, requires_grad=True), torch.zeros(1, requires_grad=True)

    loss = (softplus_lambda_gelu(x, raw, temperature=0.5) * 2).sum()

    def step():
        return torch.autograd.grad(loss, (x, raw), retain_graph=True)

    before = lambda_gelu.gradient_reuse_count()
    with_reuse = peak_bytes(step)
    assert lambda_gelu.gradient_reuse_count() == before + 2
    lambda_gelu.set_gradient_reuse(False)
    try:
        without = peak_bytes(step)
    finally:
        lambda_gelu.set_gradient_reuse(True)
    assert with_reuse <= without - x.numel() * x.element_size() + 2**10


# Here rather than above: what does not run has at least been read. One line in the report instead of hundreds.
if cuda_lacks():
    pytest.skip(f"needs CUDA: {cuda_lacks()}", allow_module_level=True)
