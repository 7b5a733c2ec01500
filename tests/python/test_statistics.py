"""observe, Statistics and Histogram: they say of a network's activations what the activations themselves say."""

import contextlib
import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import lambda_gelu
from lambda_gelu import Histogram, LambdaGELU, Statistics, observe, relu_substituted

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HARDNESS = [0.7, 1.693, 4.0, 16.0, 64.0]


# --- the reference: the error itself, element by element -------------------------------------------------------------


def gap(x, hardness):
    """ReLU(x) - x Φ(λx) in double."""
    x = x.double()
    return x.abs() * torch.special.erfc(hardness * x.abs() / 2**0.5) / 2


def gate(x, hardness):
    return torch.special.ndtr(hardness * x.double())


def ser_db(x, hardness):
    return 10 * math.log10(x.double().relu().square().sum() / gap(x, hardness).square().sum())


class Network(nn.Module):
    """Three sites: one λ after a linear layer, one for each channel after a convolution, and one never called."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.act1 = LambdaGELU(6, init_hardness=torch.linspace(1.5, 4, 6))
        self.fc1 = nn.Linear(6 * 16, 24)
        self.act2 = LambdaGELU()
        self.fc2 = nn.Linear(24, 3)

    def forward(self, x):
        return self.fc2(self.act2(self.fc1(self.act1(self.conv(x)).flatten(1))))


def images(count=256, seed=0):
    x = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x.flatten(1)[:, :3].cumsum(1) * 2).argmax(1)


@pytest.fixture(scope="module")
def trained():
    """After enough steps that the activations of no layer are normal any more."""
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.AdamW(lambda_gelu.param_groups(model, lr=0.01))
    for step in range(60):
        x, y = images(seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def inputs_of_sites(model, *batches):
    """What every site is given, concatenated."""
    seen = {name: [] for name in lambda_gelu.find_sites(model)}
    with contextlib.ExitStack() as stack:
        for name, site in lambda_gelu.find_sites(model).items():
            hook = site.register_forward_pre_hook(lambda module, args, name=name: seen[name].append(args[0].detach()))
            stack.callback(hook.remove)
        for batch in batches:
            model(batch)
    return {name: torch.cat(parts) for name, parts in seen.items()}


def expected_of(model, *batches):
    """The statistics per layer, made of the activations themselves."""
    sites = lambda_gelu.find_sites(model)
    return {
        name: Histogram.of(x, channel_dim=1 if sites[name].num_parameters > 1 else None)
        for name, x in inputs_of_sites(model, *batches).items()
    }


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), LambdaGELU(), nn.Linear(6, 6), LambdaGELU(6), nn.Linear(6, 2))


def counts(statistics):
    return {name: histogram.count for name, histogram in statistics.items()}


def assert_same(actual, expected):
    """To the bit."""
    assert list(actual) == list(expected)
    for name, histogram in actual.items():
        assert torch.equal(histogram.counts, expected[name].counts), name
        assert torch.equal(histogram.moments, expected[name].moments), name


def assert_close(actual, expected):
    """The same activations; their sums may have been formed in another order."""
    assert list(actual) == list(expected)
    for name, histogram in actual.items():
        assert torch.equal(histogram.counts, expected[name].counts), name
        torch.testing.assert_close(histogram.moments, expected[name].moments, rtol=1e-12, atol=1e-9)


# --- Histogram -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_the_cost_of_the_swap_is_predicted_as_the_activations_have_it(model, per, dtype):
    model.to(dtype)
    batches = [images(4096, seed)[0].to(dtype) for seed in (100, 101)]
    activations = inputs_of_sites(model, *batches)
    with observe(model, per=per) as statistics:
        for batch in batches:
            model(batch)
    for name, histogram in statistics.items():
        parts = [(histogram, activations[name])]
        if per == "channel" or name == "act1":
            channels = activations[name].unbind(1)
            assert histogram.num_channels == len(channels)
            parts += zip(histogram.channels, channels, strict=True)
        for its_histogram, x in parts:
            for kappa in (0.5, 2.0, 8.0, 32.0):
                hardness = kappa / x.double().std().item()
                assert abs(its_histogram.ser_db(hardness) - ser_db(x, hardness)) < 0.1
                assert its_histogram.expected_gap(hardness) == pytest.approx(gap(x, hardness).mean().item(), rel=0.02)
                assert its_histogram.expected_sq_gap(hardness) == pytest.approx(
                    gap(x, hardness).square().mean().item(), rel=0.02
                )


def test_what_does_not_depend_on_bins_is_exact():
    x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(1)) * 2 - 1
    histogram = Histogram.of(x)
    double = x.double()
    assert (histogram.count, histogram.nonfinite, histogram.num_channels) == (3000, 0, 1)
    assert histogram.mean == pytest.approx(double.mean().item(), rel=1e-12)
    assert histogram.std == pytest.approx(double.std(correction=0).item(), rel=1e-12)
    assert histogram.expected_sq_relu == pytest.approx(double.relu().square().mean().item(), rel=1e-12)
    assert histogram.zero_share == (x <= 0).double().mean().item()
    assert histogram.effective_hardness(3.0) == pytest.approx(3 * double.std(correction=0).item(), rel=1e-12)


@pytest.mark.parametrize("threshold", [0.01, 0.2])
def test_the_share_of_near_zero_gates_is_that_of_the_activations(threshold):
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(1)) * 1.3 - 0.4
    histogram = Histogram.of(x)
    for hardness in HARDNESS:
        exact = (gate(x, hardness) < threshold).double().mean().item()
        assert histogram.near_zero_share(hardness, threshold) == pytest.approx(exact, abs=0.003)


def test_several_channels_answer_with_one_hardness_each():
    hardness = torch.linspace(1.2, 9, 5)
    x = torch.randn(4000, 5, 3, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.2, 2, 5)[:, None] - 0.3
    histogram = Histogram.of(x, channel_dim=-2)
    assert (histogram.num_channels, histogram.channel_dim, histogram.count) == (5, -2, x.numel())
    lam = hardness.double()[:, None]
    for given in (hardness, hardness.tolist()):
        assert histogram.expected_gap(given) == pytest.approx(gap(x, lam).mean().item(), rel=0.01)
        assert histogram.expected_sq_gap(given) == pytest.approx(gap(x, lam).square().mean().item(), rel=0.01)
        assert abs(histogram.ser_db(given) - ser_db(x, lam)) < 0.05
        exact = (gate(x, lam) < 0.01).double().mean().item()
        assert histogram.near_zero_share(given) == pytest.approx(exact, abs=0.005)
        assert histogram.effective_hardness(given) == pytest.approx(
            (x.double() * lam).std(correction=0).item(), rel=1e-9
        )
    whole = Histogram.of(x)
    assert histogram.mean == pytest.approx(whole.mean, rel=1e-12)
    assert histogram.ser_db(4.0) == pytest.approx(whole.ser_db(4.0), rel=1e-12)
    for i, channel in enumerate(histogram.channels):
        assert channel.ser_db(4.0) == pytest.approx(Histogram.of(x[:, i]).ser_db(4.0), rel=1e-12)


@pytest.mark.parametrize("decibels", [10.0, 22.0, 30.0, 40.0])
def test_a_target_has_the_ser_or_the_gap_that_was_asked_for(decibels):
    generator = torch.Generator().manual_seed(3)
    x = torch.cat([torch.randn(20_000, generator=generator) - 1, torch.randn(5_000, generator=generator) * 3 + 1])
    histogram = Histogram.of(x)
    assert abs(ser_db(x, histogram.target_from_ser(decibels)) - decibels) < 0.1
    asked = 10 ** (-decibels / 10)
    assert gap(x, histogram.target_from_gap(asked)).mean().item() == pytest.approx(asked, rel=0.01)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_histograms_of_parts_merge_into_that_of_the_whole(dtype):
    x = (torch.randn(7, 3, 11, generator=torch.Generator().manual_seed(4)) * 2).to(dtype)
    for channel_dim in (None, 1, -2):
        first, second = (Histogram.of(part, channel_dim=channel_dim) for part in (x[:2], x[2:]))
        before = first.counts.clone()
        merged, whole = first.merge(second), Histogram.of(x, channel_dim=channel_dim)
        assert torch.equal(first.counts, before)
        assert_close({"": merged}, {"": whole})
    with pytest.raises(ValueError, match="cannot be merged"):
        first.merge(Histogram.of(x))
    with pytest.raises(TypeError, match="other must be a Histogram, got Tensor"):
        first.merge(x)


def test_nan_and_infinities_are_counted_apart_and_refused():
    x = torch.tensor([1.0, math.nan, -math.inf, 2.0, math.inf])
    histogram = Histogram.of(x)
    assert (histogram.count, histogram.nonfinite) == (2, 3)
    assert "nonfinite=3" in repr(histogram)
    for question in (lambda: histogram.mean, lambda: histogram.ser_db(2.0), lambda: histogram.target_from_ser(30)):
        with pytest.raises(ValueError, match="NaN"):
            question()


QUESTIONS = {
    "mean": lambda h: h.mean,
    "std": lambda h: h.std,
    "zero_share": lambda h: h.zero_share,
    "expected_sq_relu": lambda h: h.expected_sq_relu,
    "expected_gap": lambda h: h.expected_gap(2.0),
    "expected_sq_gap": lambda h: h.expected_sq_gap(2.0),
    "ser_db": lambda h: h.ser_db(2.0),
    "near_zero_share": lambda h: h.near_zero_share(2.0),
    "effective_hardness": lambda h: h.effective_hardness(2.0),
    "target_from_ser": lambda h: h.target_from_ser(30.0),
    "target_from_gap": lambda h: h.target_from_gap(0.1),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_empty_histogram_answers_nothing_and_says_of_which_site(question):
    empty = Histogram(torch.zeros(1, 256, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.float64), name="blocks.3")
    with pytest.raises(ValueError, match=r"blocks\.3: .*empty"):
        QUESTIONS[question](empty)
    without_channels = Histogram(
        torch.zeros(0, 256, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.float64), channel_dim=1
    )
    with pytest.raises(ValueError, match="empty"):
        QUESTIONS[question](without_channels)
    assert without_channels.channels == () and "count=0" in repr(without_channels)


@pytest.mark.parametrize("hardness", [0.0, -1.0, math.nan, math.inf, [1.0, math.nan, 1.0]])
@pytest.mark.parametrize(
    "question", ["expected_gap", "expected_sq_gap", "ser_db", "near_zero_share", "effective_hardness"]
)
def test_a_hardness_must_be_finite_and_positive(question, hardness):
    histogram = Histogram.of(torch.randn(8, 3), channel_dim=1)
    with pytest.raises(ValueError, match="hardness must be finite and positive"):
        getattr(histogram, question)(hardness)


def test_a_hardness_per_channel_needs_a_histogram_per_channel():
    x = torch.randn(8, 3)
    with pytest.raises(ValueError, match=r'3 values, but the histogram 1 channel; observe\(per="channel"\)'):
        Histogram.of(x).ser_db(torch.ones(3))
    with pytest.raises(ValueError, match="2 values, but the histogram 3 channels"):
        Histogram.of(x, channel_dim=1).ser_db([1.0, 2.0])
    for hardness in ("2", None, True, ["2"], [None], [[2.0]]):
        with pytest.raises(TypeError, match="hardness must be a float"):
            Histogram.of(x).ser_db(hardness)


def test_a_hardness_may_come_from_numpy():
    np = pytest.importorskip("numpy")
    histogram = Histogram.of(torch.randn(8, 3), channel_dim=1)
    for hardness in (2, [2.0], np.float32(2), np.array([2.0]), torch.tensor(2.0)):
        assert histogram.ser_db(hardness) == histogram.ser_db(2.0)
    assert histogram.ser_db(np.array([1.0, 2.0, 3.0])) == histogram.ser_db((1.0, 2.0, 3.0))


def test_what_is_no_tensor_or_has_no_such_dimension_is_refused():
    with pytest.raises(TypeError, match="x must be a tensor"):
        Histogram.of([1.0])
    for dim in (2, -3):
        with pytest.raises(ValueError, match=rf"channel_dim {dim} is out of range .*\(2, 2\)"):
            Histogram.of(torch.ones(2, 2), channel_dim=dim)
    with pytest.raises(TypeError, match="channel_dim must be an int"):
        Histogram.of(torch.ones(2, 2), channel_dim=1.0)
    with pytest.raises(ValueError, match=r"counts must be torch.int64 of shape \(channels, 256\)"):
        Histogram(torch.zeros(1, 256), torch.zeros(1, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"moments must be torch.float64 of shape \(channels, 4\)"):
        Histogram(torch.zeros(1, 256, dtype=torch.int64), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="2 rows, but moments 1"):
        Histogram(torch.zeros(2, 256, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.float64))


# --- observe ---------------------------------------------------------------------------------------------------------


def test_every_call_in_the_context_is_counted_and_none_outside(model):
    first, second, third = (images(8, seed)[0] for seed in range(3))
    model(first)
    with observe(model) as statistics:
        model(first)
        assert counts(statistics) == {"act1": 8 * 96, "act2": 8 * 24}
        assert [histogram.num_channels for histogram in statistics.values()] == [6, 1]  # as many as it has λ
        assert statistics["act2"].mean == pytest.approx(
            inputs_of_sites(model, first)["act2"].double().mean().item(), rel=1e-6
        )
        model(second)
    finished = statistics.snapshot()
    model(third)
    assert_same(statistics, finished)
    assert_close(statistics, expected_of(model, first, first, second))  # the reference ran the model once above


def test_observing_changes_neither_outputs_nor_gradients(model):
    x, y = images()

    def gradients():
        model.zero_grad()
        output = model(x)
        F.cross_entropy(output, y).backward()
        return [output.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    expected = gradients()
    for options in ({}, {"per": "channel"}, {"every": 2}):
        with observe(model, **options):
            actual = gradients()
        assert all(map(torch.equal, actual, expected))
    assert not any(site._observers for site in lambda_gelu.find_sites(model).values())


def test_every_device_counts_what_the_cpu_counts(device):
    torch.manual_seed(0)
    model = Network()
    x = images(16)[0].to(device)
    activations = inputs_of_sites(model, x)
    for per, dims in (("layer", (1, None)), ("channel", (1, 1))):
        with observe(model, per=per, every=2) as statistics:
            for _ in range(3):
                model(x)
        for (name, histogram), dim in zip(statistics.items(), dims, strict=True):
            once = Histogram.of(activations[name].cpu(), channel_dim=dim)
            assert_close({name: histogram}, {name: once.merge(once)})


def test_what_a_device_without_float64_computes_is_counted_on_the_cpu(monkeypatch):
    site = LambdaGELU(device="mps" if torch.backends.mps.is_available() else "meta")
    monkeypatch.setattr(lambda_gelu._observer, "widest_dtype", lambda device: torch.float32)
    with observe(site):
        (observer,) = site._observers
        assert (observer.counts.device.type, observer.moments.device.type) == ("cpu", "cpu")


def test_channels_are_those_of_the_dimension_that_is_asked_for(model):
    x = images(16)[0]
    activations = inputs_of_sites(model, x)
    with (
        observe(model, per="channel") as own,
        observe(model, per="channel", channel_dim={"act1": -1, "act2": None}) as named,
    ):
        model(x)
    with observe(model, per="channel", channel_dim=0) as common:
        model(x)
    for statistics, dims in ((own, (1, 1)), (named, (-1, None)), (common, (0, 0))):
        assert statistics.per == "channel"
        expected = {n: Histogram.of(activations[n], channel_dim=d) for n, d in zip(activations, dims, strict=True)}
        assert_close(statistics, expected)
        assert [histogram.channel_dim for histogram in statistics.values()] == list(dims)


def test_every_nth_call_of_a_site_is_counted_from_the_first_on(model):
    batches = [images(4, seed)[0] for seed in range(7)]
    with observe(model, every=3) as statistics:
        for batch in batches:
            model(batch)
    assert_close(statistics, expected_of(model, *batches[::3]))


def test_a_site_at_two_places_is_counted_once_under_its_first_name():
    site = LambdaGELU()
    model = nn.Sequential(site, nn.Linear(3, 3), site)
    with observe(model) as statistics:
        model(torch.randn(5, 3))
    assert counts(statistics) == {"0": 30}


def test_contexts_nest_and_each_counts_everything(model):
    x = images(4)[0]
    with observe(model) as outer:
        model(x)
        with observe(model, per="channel") as inner:
            model(x)
        model(x)
    assert counts(outer) == {"act1": 3 * 4 * 96, "act2": 3 * 4 * 24}
    assert counts(inner) == {"act1": 4 * 96, "act2": 4 * 24}
    with observe(model) as left_first:
        second = observe(model)
        statistics = second.__enter__()
        model(x)
    model(x)
    second.__exit__(None, None, None)
    assert (counts(left_first)["act2"], counts(statistics)["act2"]) == (96, 192)
    assert not model.act2._observers


def test_after_an_exception_nothing_is_observed_any_more(model):
    x = images(4)[0]
    with pytest.raises(KeyError), observe(model) as statistics:
        model(x)
        raise KeyError
    model(x)
    assert counts(statistics)["act2"] == 96
    assert not model.act1._observers and not model.act2._observers


def test_within_relu_substituted_the_input_of_the_relu_is_counted(model):
    x = images(4)[0]
    with relu_substituted(model):
        expected = expected_of(model, x)
        with observe(model) as statistics:
            model(x)
    assert_close(statistics, expected)
    with observe(model) as other:
        model(x)
    assert not torch.equal(other["act2"].counts, statistics["act2"].counts)


def test_copies_and_pickles_made_in_the_context_are_not_observed(model):
    x = images(4)[0]
    with observe(model) as statistics:
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for each in copies:
            each(x)
            assert each.act1._observers == ()
    assert counts(statistics) == {"act1": 0, "act2": 0}
    state = model.act2.__getstate__()
    del state["_observers"]  # as it was pickled by earlier versions
    old = LambdaGELU()
    del old.__dict__["_observers"]
    old.__setstate__(state)
    assert torch.equal(old(x), model.act2(x))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_what_checkpointing_computes_again_is_counted_once(model, use_reentrant):
    x = images(4)[0].requires_grad_()
    with observe(model) as statistics:
        output = checkpoint(lambda x: model.act1(model.conv(x)), x, use_reentrant=use_reentrant)
        output.sum().backward()
    assert counts(statistics) == {"act1": 4 * 96, "act2": 0}


@pytest.mark.parametrize("options", [{"per": "channel"}, {"every": 2}], ids=str)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
def test_a_context_may_be_entered_and_left_in_any_gradient_mode(model, mode, options):
    x = images(4)[0]
    for outer, inner in ((mode, contextlib.nullcontext), (contextlib.nullcontext, mode)):
        with outer():
            context = observe(model, **options)
            statistics = context.__enter__()
        statistics.reset()
        with inner():
            model(x)
        F.cross_entropy(model(x), torch.zeros(4, dtype=torch.int64)).backward()
        with outer():
            context.__exit__(None, None, None)
        assert counts(statistics)["act2"] == (96 if "every" in options else 2 * 96)


def test_under_autocast_the_activations_are_counted_in_their_dtype(model):
    x = images(4)[0]
    with torch.autocast("cpu", torch.bfloat16), observe(model) as statistics:
        model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert inputs_of_sites(model, x)["act2"].dtype == torch.bfloat16
        expected = expected_of(model, x)
    assert_close(statistics, expected)


def test_under_transforms_the_values_behind_them_are_counted(model):
    site = LambdaGELU(3, channel_dim=0)
    x = torch.randn(5, 3, 7)
    expected = Histogram.of(x, channel_dim=1)
    for in_dim in (0, 1, 2):
        moved = x.movedim(0, in_dim)
        with observe(site, per="channel") as statistics:
            torch.func.vmap(torch.func.grad(lambda row: site(row).sum()), in_dims=in_dim)(moved)
        assert torch.equal(statistics[""].counts, expected.counts)


TRANSFORMS = {
    "vmap": lambda f, x: torch.func.vmap(f)(x),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(lambda row: f(row).sum()))(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](x),
    "functional_call": lambda f, x: torch.func.functional_call(f, {}, (x,)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_under_transforms_every_nth_call_is_counted(transform):
    site, x = LambdaGELU(3, channel_dim=-1), torch.randn(5, 3)
    once = Histogram.of(x, channel_dim=-1)
    with observe(site, every=2) as statistics:
        for count in (1, 1, 2):
            TRANSFORMS[transform](site, x)
            assert torch.equal(statistics[""].counts, count * once.counts)


def test_activations_of_no_elements_count_nothing():
    model = small()
    with observe(model, per="channel", channel_dim=-1) as statistics:
        model(torch.empty(0, 4))
    assert statistics.never_executed == ("1", "3")


def test_a_site_with_another_number_of_channels_is_refused_by_name():
    model = nn.Sequential(LambdaGELU())
    with observe(model, per="channel") as statistics:
        model(torch.randn(2, 3))
        with pytest.raises(ValueError, match="0: its input had 3 channels in dimension 1, and now 4"):
            model(torch.randn(2, 4))
        with pytest.raises(ValueError, match=r"0: channel_dim 1 is out of range .*\(3,\)"):
            model(torch.randn(3))
        statistics.reset()
        model(torch.randn(2, 4))
    assert statistics["0"].num_channels == 4


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_what_the_site_refuses_is_not_counted(per):
    model = nn.Sequential(LambdaGELU(3))
    x = torch.randn(2, 3)
    with observe(model, per=per) as statistics:
        with pytest.raises(ValueError, match="0: its input has 4 channels in dimension 1, but it has 3 λ"):
            model(torch.randn(2, 4))
        assert counts(statistics) == {"0": 0}
        model(x)
    assert torch.equal(statistics["0"].counts, Histogram.of(x, channel_dim=1).counts)


def test_bad_arguments_are_refused_and_nothing_is_observed(model):
    for options, error, message in [
        ({"per": "neuron"}, ValueError, 'per must be "layer" or "channel", got \'neuron\''),
        ({"per": 1}, TypeError, "per must be a str"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 2.0}, TypeError, "every must be an int"),
        ({"channel_dim": 1}, ValueError, 'channel_dim=1 needs per="channel"'),
        ({"per": "channel", "channel_dim": {"act3": 1}}, ValueError, r"names act3, but the sites are \['act1', 'act2'"),
        ({"per": "channel", "channel_dim": {"act2": 1.0}}, TypeError, "channel_dim of act2 must be an int, got float"),
    ]:
        with pytest.raises(error, match=message), observe(model, **options):
            pass
        assert not model.act1._observers
    with pytest.raises(ValueError, match="no LambdaGELU module"), observe(nn.Linear(2, 2)):
        pass
    with pytest.raises(TypeError, match="model must be a"), observe(lambda x: x):
        pass


# --- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.fixture
def compilations():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "options", [{}, {"per": "channel"}, {"per": "channel", "channel_dim": 0}, {"every": 2}], ids=str
)
def test_compiled_code_counts_the_same_and_is_compiled_once_more(model, options, backend, compilations):
    x, y = images(8)
    with observe(model, **options) as expected:
        model(x)
        model(x)
    compiled = torch.compile(copy.deepcopy(model), backend=backend, fullgraph=True)

    def train():
        F.cross_entropy(compiled(x), y).backward()

    train()
    assert compilations() == 1
    for _ in range(3):
        with observe(compiled, **options) as statistics:
            train()
            train()
        assert_close(statistics, expected)
        train()
    assert compilations() == 2


def test_inductor_counts_the_same(compilations):
    model = small()
    x = torch.randn(64, 4)
    with observe(model) as expected:
        model(x)
    compiled = torch.compile(model, fullgraph=True)
    with observe(compiled) as statistics:
        compiled(x).sum().backward()
        compiled(x).sum().backward()
    for name, histogram in statistics.items():
        assert histogram.count == 2 * expected[name].count
        assert abs(histogram.ser_db(2.0) - expected[name].ser_db(2.0)) < 1e-3


class Checkpointed(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def test_compiled_checkpointing_counts_once(compilations):
    model = Checkpointed(*small())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with observe(model) as statistics:
        compiled(torch.randn(3, 4)).sum().backward()
    assert counts(statistics) == {"1": 18, "3": 18}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.activation, self.down = nn.Linear(4, 6), LambdaGELU(), nn.Linear(6, 4)

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


def test_blocks_that_share_compiled_code_are_not_compiled_each(compilations):
    count = torch._dynamo.config.recompile_limit + 2
    model = nn.ModuleList(Block() for _ in range(count))
    for block in model:
        block.compile(backend="eager", fullgraph=True)
    x = torch.randn(3, 4)
    for _ in range(2):
        with observe(model, per="channel", channel_dim=-1) as statistics:
            for block in model[:-1]:
                block(x)
        assert set(counts(statistics).values()) == {18, 0}
        assert statistics[f"{count - 1}.activation"].num_channels == 0  # not called: whatever the others have
    assert compilations() == 1


def test_dynamic_shapes_do_not_multiply_compilations(compilations):
    model = small()
    compiled = torch.compile(model, backend="aot_eager", dynamic=True, fullgraph=True)
    for _ in range(2):
        with observe(compiled, per="channel", channel_dim=-1) as statistics:
            for count in (2, 5, 9):
                compiled(torch.randn(count, 4))
        assert counts(statistics) == {"1": 96, "3": 96}
    assert compilations() == 1


def test_an_exported_program_does_not_count():
    model = small().eval()
    with observe(model) as statistics:
        program = torch.export.export(model, (torch.randn(3, 4),))
    assert not any("observe" in str(node.target) for node in program.graph.nodes)
    assert counts(statistics) == {"1": 0, "3": 0}


# --- Statistics ------------------------------------------------------------------------------------------------------


def observed(model, *batches, **options):
    with observe(model, **options) as statistics:
        for batch in batches:
            model(batch)
    return statistics


def test_statistics_are_a_mapping_in_the_order_of_the_sites(model):
    with observe(model) as statistics:
        assert list(statistics) == ["act1", "act2"] and len(statistics) == 2 and "act1" in statistics
        model(images(4)[0])
    assert list(statistics) == ["act1", "act2"] and statistics["act1"].name == "act1"
    with pytest.raises(KeyError):
        statistics["act3"]
    lines = repr(statistics).splitlines()
    assert lines[0] == "Statistics(per='layer')" and lines[1].split() == [
        "site",
        "count",
        "mean",
        "std",
        "x",
        "<=",
        "0",
    ]
    assert lines[3].split()[:2] == ["act1", "384"]


def test_a_snapshot_stands_still_and_reset_begins_a_new_window(model):
    first, second = images(4, 0)[0], images(4, 1)[0]
    with observe(model) as statistics:
        model(first)
        snapshot = statistics.snapshot()
        statistics.reset()
        model(second)
    assert_same(snapshot, observed(model, first))
    assert_same(statistics, observed(model, second))
    with pytest.raises(RuntimeError, match=r"call reset\(\) inside observe\(\)"):
        statistics.reset()


@pytest.mark.parametrize("options", [{}, {"per": "channel"}], ids=str)
def test_merged_statistics_are_those_of_all_the_data(model, options):
    batches = [images(4, seed)[0] for seed in range(3)]
    whole = observed(model, *batches, **options)
    parts = [observed(model, batch, **options) for batch in batches]
    with observe(model, **options) as live:  # and into what is being observed
        model(batches[0])
        assert live.merge(parts[1]) is live
        live.merge(parts[2])
    before = parts[1].snapshot()
    parts[0].merge(parts[1]).merge(parts[2])
    assert_close(parts[0], whole)
    assert_close(live, whole)
    assert_same(parts[1], before)


def test_merging_takes_the_channels_of_a_site_that_was_not_reached():
    model = nn.ModuleDict({"a": LambdaGELU(), "b": LambdaGELU()})
    x = torch.randn(3, 5)
    with observe(model, per="channel") as a:
        model["a"](x)
    with observe(model, per="channel") as b:
        model["b"](x)
    assert a.never_executed == ("b",)
    merged = a.snapshot().merge(b)
    assert merged.never_executed == () and counts(merged) == {"a": 15, "b": 15}
    assert_same(b.snapshot().merge(a), merged)


def test_statistics_are_saved_as_plain_data_and_loaded(model, tmp_path):
    x = images(4)[0]
    for options in ({}, {"per": "channel", "channel_dim": -1}):
        statistics = observed(model, x, **options)
        statistics.save(tmp_path / "statistics.pt")
        torch.load(tmp_path / "statistics.pt", weights_only=True)
        loaded = Statistics.load(tmp_path / "statistics.pt")
        assert_same(loaded, statistics)
        assert loaded.per == statistics.per
        assert [h.channel_dim for h in loaded.values()] == [h.channel_dim for h in statistics.values()]
        assert loaded["act2"].name == "act2"
        loaded.check_model(model)


@pytest.mark.parametrize("options", [{}, {"per": "channel"}], ids=str)
def test_an_observation_goes_on_from_a_saved_state(model, options):
    batches = [images(4, seed)[0] for seed in range(2)]
    state = copy.deepcopy(observed(model, batches[0], **options).state_dict())
    with observe(model, **options) as statistics:
        statistics.load_state_dict(state)
        model(batches[1])
    assert_same(statistics, observed(model, *batches, **options))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["copy", "pickle"])
def test_copies_and_pickles_are_snapshots(model, duplicate):
    x = images(4)[0]
    with observe(model) as live:
        model(x)
        live["act1"].ser_db(2.0)
        during = duplicate(live)
        model(x)
    assert_same(during, observed(model, x))
    histogram = live["act1"]
    assert duplicate(histogram).ser_db(2.0) == histogram.ser_db(2.0)
    hardness = model.act1.hardness
    assert duplicate(live)["act1"].ser_db(hardness) == histogram.ser_db(hardness)


def test_a_state_is_a_copy(model):
    x = images(4)[0]
    with observe(model) as live:
        model(x)
        state = live.state_dict()
        before = copy.deepcopy(state)
        model(x)
    finished = observed(model, x)
    loaded = Statistics({})
    loaded.load_state_dict(states := finished.state_dict())
    for name in ("counts", "moments"):
        assert torch.equal(state["sites"]["act1"][name], before["sites"]["act1"][name])
        states["sites"]["act1"][name].zero_()
    assert_same(finished, observed(model, x))
    assert_same(loaded, finished)


def other_model():
    return nn.ModuleDict({"act1": LambdaGELU(6), "act3": LambdaGELU()})


def test_statistics_of_another_model_are_refused_and_nothing_changes(model):
    statistics = observed(model, images(4)[0])
    before = statistics.snapshot()
    others = other_model()
    foreign = Statistics({"act1": Histogram.of(torch.ones(3)), "act3": Histogram.of(torch.ones(3))})
    with pytest.raises(ValueError, match=r"another model: they lack act3; the model has no site act2"):
        statistics.check_model(others)
    for refused in (lambda: statistics.merge(foreign), lambda: statistics.load_state_dict(foreign.state_dict())):
        with pytest.raises(ValueError, match=r"another model: only one of them has act2, act3"):
            refused()
    model.act1 = LambdaGELU(8)
    with pytest.raises(ValueError, match=r"another model: act1 had 6 λ when it was observed, but the model has 8"):
        statistics.check_model(model)
    with pytest.raises(ValueError, match=r"act1 had 8 λ .* the other has 6"), observe(model) as live:
        live.load_state_dict(statistics.state_dict())
    assert_same(statistics, before)


def test_statistics_of_other_channels_are_refused_and_nothing_changes(model):
    x = images(4)[0]
    layer, channel = observed(model, x), observed(model, x, per="channel")
    moved = observed(model, x, per="channel", channel_dim=-1)
    fewer = observed(model, images(3)[0], per="channel", channel_dim=0)
    empty = observed(copy.deepcopy(model), per="channel", channel_dim=3)
    for one, other, message in [
        (layer, channel, r"act1 has 6 channels in dimension 1 \(per layer\), and 6 .* \(per channel\) in the other"),
        (layer, Statistics({name: Histogram.of(x) for name in layer}), "act1 has 6 .*, and one histogram"),
        (channel, moved, "act1 has 6 channels in dimension 1 .*, and 4 channels in dimension -1"),
        (observed(model, x, per="channel", channel_dim=0), fewer, "4 channels in dimension 0 .*, and 3 channels"),
        (channel, empty, "act1 has 6 channels in dimension 1 .*, and 0 channels in dimension 3"),
    ]:
        before = one.snapshot()
        for refused in (one.merge, lambda s, one=one: one.load_state_dict(s.state_dict())):
            with pytest.raises(ValueError, match=message):
                refused(other)
        assert_same(one, before)
    with pytest.raises(TypeError, match="other must be Statistics"):
        layer.merge({})


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"per": "layer"},
        {"per": "layer", "sites": {"act1": {}}},
        {"per": "layer", "sites": {"act1": {"counts": 1, "moments": 2, "channel_dim": None, "num_hardness": 1}}},
        {"per": "neither", "sites": {}},
        None,
    ],
    ids=str,
)
def test_what_is_no_state_is_refused_and_nothing_changes(model, state):
    statistics = observed(model, images(4)[0])
    before = statistics.snapshot()
    with pytest.raises(ValueError, match=r"no state of Statistics|per must be"):
        statistics.load_state_dict(state)
    assert_same(statistics, before)


def test_a_state_that_is_broken_in_its_last_part_is_refused_and_nothing_changes(model):
    with observe(model, every=2) as live:
        model(images(4)[0])
        before, state = live.snapshot(), live.state_dict()
        state["sites"]["act1"]["counts"].zero_()
        state["sites"]["act2"]["calls"] = []
        with pytest.raises(ValueError, match="no state of Statistics"):
            live.load_state_dict(state)
        assert_same(live, before)


def test_what_was_not_calibrated_is_named():
    model = small()
    with observe(model) as statistics:
        with pytest.raises(ValueError, match="the swap: there is no calibration data, no site was executed"):
            statistics.require_complete("the swap")
        model[:2](torch.randn(3, 4))
        assert statistics.never_executed == ("3",)
        with pytest.raises(ValueError, match=r"the swap: never executed while it was observed: 3\."):
            statistics.require_complete("the swap")
        model(torch.randn(3, 4))
        statistics.require_complete("the swap")
        x = torch.randn(3, 4)
        x[0, 0] = math.nan
        model(x)
    assert statistics.never_executed == ()
    with pytest.raises(ValueError, match=r"the swap: activations that are NaN or infinite at 1 \(6\), 3 \(6\)"):
        statistics.require_complete("the swap")
    assert "(6 NaN or infinite)" in repr(statistics)


def test_all_reduce_is_refused_where_it_would_count_twice(model):
    with observe(model) as statistics, pytest.raises(RuntimeError, match=r"all_reduce\(\) inside observe\(\)"):
        statistics.all_reduce()
