"""λ and κ in TensorBoard, read back from the files that it wrote."""

import contextlib
import math

import pytest
import torch
from torch import nn

from lambda_gelu import Histogram, LambdaGELU, Statistics, to_relu_

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lambda_gelu.integrations import _metrics
from lambda_gelu.integrations.tensorboard import log_hardness, preactivation_std


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), LambdaGELU(init_hardness=2.0), nn.Linear(6, 3), LambdaGELU(3))
    model[3].set_hardness(torch.tensor([2.0, 4.0, 6.0]))
    return model


def written(folder):
    events = EventAccumulator(str(folder)).Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    histograms = {tag: events.Histograms(tag)[0].histogram_value for tag in events.Tags()["histograms"]}
    return scalars, histograms


def test_hardness_and_effective_hardness_of_every_site_are_written(model, tmp_path):
    batches = torch.randn(5, 7, 4) + 3
    with preactivation_std(model) as std:
        for batch in batches:
            model(batch)
    first = model[0](batches.flatten(0, 1)).double()
    second = model[2](model[1](first.float())).double()
    expected = {"1": first.std(correction=0)[None], "3": second.std(0, correction=0)}
    assert std.keys() == expected.keys()
    for name in std:
        torch.testing.assert_close(std[name], expected[name], rtol=1e-6, atol=0)

    with SummaryWriter(tmp_path) as writer:
        log_hardness(writer, model, 7, std=std)
    scalars, histograms = written(tmp_path)
    kappa = torch.tensor([2.0, 4.0, 6.0]) * expected["3"]
    assert {tag: (step, pytest.approx(value, rel=1e-5)) for tag, ((step, value),) in scalars.items()} == {
        "hardness_min": (7, 2.0),
        "hardness_mean": (7, 3.5),
        "hardness_max": (7, 6.0),
        "hardness/1": (7, 2.0),
        "hardness/3": (7, 4.0),
        "effective_hardness/1": (7, 2 * expected["1"].item()),
        "effective_hardness/3": (7, kappa.mean().item()),
    }
    assert set(histograms) == {"hardness_per_channel/3", "effective_hardness_per_channel/3"}
    values = histograms["effective_hardness_per_channel/3"]
    assert (values.num, values.min, values.max) == (
        3,
        pytest.approx(kappa.min().item()),
        pytest.approx(kappa.max().item()),
    )


def test_without_std_only_hardness_is_written(model, tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for step in range(3):
            log_hardness(writer, model, step)
    scalars, histograms = written(tmp_path)
    assert [step for step, _ in scalars["hardness/1"]] == [0, 1, 2]
    assert not any("effective" in tag for tag in (*scalars, *histograms))


def test_a_model_without_sites_writes_nothing_and_an_unknown_name_is_refused(model, tmp_path):
    with SummaryWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match=r"std names 2, but the sites are \['1', '3'\]"):
            log_hardness(writer, model, 0, std={"1": torch.ones(1), "2": torch.ones(1)})
        to_relu_(model)
        log_hardness(writer, model, 0)
    assert written(tmp_path) == ({}, {})


def test_the_measurement_leaves_nothing_and_gives_only_what_was_called(model):
    with preactivation_std(model) as std:
        assert std == {}
    assert std == {} and not model[1]._observers
    with pytest.raises(KeyError), preactivation_std(model) as std:
        model(torch.randn(2, 4))
        raise KeyError
    assert std == {} and not model[1]._observers
    with preactivation_std(model) as std, torch.inference_mode():
        model[1](torch.full((3, 5), 2.0))
    assert std == {"1": 0.0}


def test_activations_that_are_not_finite_have_no_standard_deviation(model):
    with preactivation_std(model) as std:
        model[3](torch.tensor([[1.0, 1.0, torch.nan], [3.0, 1.0, 1.0]]))
    torch.testing.assert_close(std["3"], torch.tensor([1.0, 0.0, torch.nan]).double(), equal_nan=True)


def test_channels_of_other_processes_have_no_standard_deviation_here(model, monkeypatch):
    seen = Histogram.of(torch.tensor([[1.0], [3.0]]), channel_dim=1)
    counts, moments = (
        torch.cat([table, torch.zeros(2, table.size(1))]).to(table) for table in (seen.counts, seen.moments)
    )

    @contextlib.contextmanager
    def of_one_rank(model):  # of three that share the channels
        yield Statistics({"3": Histogram(counts, moments, channel_dim=1)})

    monkeypatch.setattr(_metrics, "observe", of_one_rank)
    with preactivation_std(model) as std:
        pass
    torch.testing.assert_close(std["3"], torch.tensor([1.0, torch.nan, torch.nan]).double(), equal_nan=True)


def test_a_diverged_model_is_logged_as_far_as_it_can_be(model, tmp_path):
    with preactivation_std(model) as std:
        model(torch.full((2, 4), torch.nan))
    with SummaryWriter(tmp_path) as writer:
        log_hardness(writer, model, 0, std=std)
    scalars, histograms = written(tmp_path)
    assert math.isnan(scalars["effective_hardness/3"][0][1]) and set(histograms) == {"hardness_per_channel/3"}


def test_what_was_compiled_before_is_measured_too(model):
    x = torch.randn(7, 4)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    with preactivation_std(compiled) as std:
        compiled(x)
    torch.testing.assert_close(std["1"], model[0](x).double().std(correction=0)[None], rtol=1e-6, atol=0)


def test_a_rank_that_does_not_write_passes_none(model):
    log_hardness(None, model, 0)
    with pytest.raises(ValueError, match="std names 2"):
        log_hardness(None, model, 0, std={"2": torch.ones(1)})
