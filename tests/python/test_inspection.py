"""inspect_sites: what the swap would cost as a model stands."""

import copy
import csv
import json
import subprocess
import sys
import warnings
from dataclasses import fields

import pytest
import torch
from torch import nn

from lambda_gelu import (
    HardnessScheduler,
    InspectedSite,
    LambdaGELU,
    inspect_sites,
    lambda_gelu,
    observe,
    suggest_targets,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), LambdaGELU(), nn.Linear(16, 8), LambdaGELU(8), nn.Linear(8, 2))
    model[3].set_hardness(torch.linspace(2.0, 6.0, 8))
    return model


X = torch.randn(2048, 4, generator=torch.Generator().manual_seed(1)) * 2


def observed(model, per="layer", x=X):
    with observe(model, per=per) as statistics, torch.no_grad():
        model(x)
    return statistics


def ser_db(x, hardness):
    gap = x.relu() - lambda_gelu(x, hardness)
    return 10 * torch.log10(x.relu().square().sum() / gap.square().sum()).item()


def test_every_number_is_that_of_the_tensors(model):
    first, second = inspect_sites(model, observed(model), tolerance_db=25.0).sites
    with torch.no_grad():
        x = model[:3](X).double()
        hardness = model[3].hardness.double()
    assert (second.name, second.count, first.count) == ("3", 2048 * 8, 2048 * 16)
    assert (second.hardness_min, second.hardness_max) == (pytest.approx(2.0), pytest.approx(6.0))
    assert second.hardness_mean == pytest.approx(4.0)
    assert second.mean == pytest.approx(x.mean().item())
    assert second.std == pytest.approx(x.std(correction=0).item())
    assert second.effective_hardness == pytest.approx((x * hardness).std(correction=0).item())
    assert second.ser_db == pytest.approx(ser_db(x, hardness), abs=0.1)
    assert second.expected_gap == pytest.approx((x.relu() - lambda_gelu(x, hardness)).mean().item(), rel=0.01)
    gates = torch.special.ndtr(hardness * x)
    assert second.zeros_before == pytest.approx((gates < 0.01).double().mean().item(), abs=0.01)
    assert second.zeros_after == pytest.approx((x <= 0).double().mean().item())
    assert second.target_min == second.target_max
    assert ser_db(x, second.target_mean) == pytest.approx(25.0, abs=0.1)
    assert second.target_ser_db == pytest.approx(25.0, abs=1e-6)


def test_targets_per_channel_reach_the_tolerance_in_every_channel(model):
    _, second = inspect_sites(model, observed(model, per="channel"), per="channel", cap=1e4).sites
    assert second.target_min < second.target_mean < second.target_max
    assert second.target_ser_db == pytest.approx(30.0, abs=1e-6)


def test_a_site_that_is_hard_enough_is_counted(model):
    statistics = observed(model)
    model[1].freeze_hardness()
    model[1].set_hardness(50.0)
    report = inspect_sites(model, statistics)
    assert [site.reached for site in report.sites] == [True, False]
    assert str(report).splitlines()[0] == "1 of 2 sites at 30 dB or above"


def test_a_site_at_its_target_has_reached_the_tolerance(model):
    for _ in range(5):  # whichever way the rounding of λ to float32 goes
        with torch.no_grad():
            model[0].weight.mul_(1.01)
        hardened = copy.deepcopy(model)
        targets = suggest_targets(observed(hardened[:2]))
        HardnessScheduler(hardened[:2], 1, start=0, target=targets).step()
        (site,) = inspect_sites(hardened[:2], observed(hardened[:2])).sites
        assert site.reached and site.ser_db == pytest.approx(30.0, abs=1e-3)


def test_what_the_cap_keeps_from_the_tolerance_is_named_and_not_warned_of(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = inspect_sites(model, observed(model), cap=3.0)
    second = report.sites[1]
    assert second.target_max == 3.0
    assert str(report).splitlines()[-1] == (
        f"3: its target is capped at λ = 3, where it reaches {second.target_ser_db:.1f} dB"
    )


def test_places_that_share_a_site_are_named(model):
    site = LambdaGELU()
    twice = nn.Sequential(site, nn.Linear(4, 4), site)
    (inspected,) = inspect_sites(twice, observed(twice)).sites
    assert (inspected.name, inspected.also_at, inspected.count) == ("0", ("2",), 2 * 2048 * 4)


def test_statistics_that_cannot_be_used_are_refused(model):
    with pytest.raises(ValueError, match="another model"):
        inspect_sites(model, observed(nn.Sequential(LambdaGELU())))
    with pytest.raises(ValueError, match=r"inspect_sites: .*no calibration data"), observe(model) as nothing:
        inspect_sites(model, nothing)
    with pytest.raises(ValueError, match=r"inspect_sites: activations that are NaN or infinite at 1 "):
        inspect_sites(model, observed(model, x=torch.full((2, 4), torch.nan)))
    with pytest.raises(ValueError, match="need statistics per channel"):
        inspect_sites(model, observed(model), per="channel")
    for name in ("tolerance_db", "cap"):
        with pytest.raises(ValueError, match=f"{name} must be finite and positive"):
            inspect_sites(model, observed(model), **{name: 0.0})


def test_channels_that_the_cap_keeps_from_the_tolerance_are_named_where_the_site_has_it(model):
    x = X * torch.tensor([1.0, 1.0, 1.0, 0.05])
    sites = nn.Sequential(LambdaGELU(4))
    report = inspect_sites(sites, observed(sites, per="channel", x=x), per="channel", cap=20.0)
    assert report.sites[0].target_ser_db > 29.95 and report.sites[0].target_min < 20
    assert str(report).splitlines()[-1] == "0: some of its channels are capped at λ = 20"


def test_the_report_is_written_as_json_and_csv(model, tmp_path):
    report = inspect_sites(model, observed(model))
    plain = json.loads(report.to_json(tmp_path / "report.json"))
    assert plain == report.to_dict() and (plain["tolerance_db"], plain["cap"]) == (30.0, 64.0)
    assert plain["sites"][1]["ser_db"] == report.sites[1].ser_db
    report.to_csv(tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [item.name for item in fields(InspectedSite)]
    assert [float(row["ser_db"]) for row in rows] == [site.ser_db for site in report.sites]


def test_a_site_that_nothing_positive_reaches_has_a_report_in_strict_json(model, tmp_path):
    dead = nn.Sequential(LambdaGELU())
    report = inspect_sites(dead, observed(dead, x=-X.abs()))
    (site,) = json.loads(report.to_json(), parse_constant=pytest.fail)["sites"]
    assert site["ser_db"] == "-inf" and site["target_mean"] == 64.0
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "report.png")


def test_the_picture_shows_the_targets_beside_what_is(model):
    pytest.importorskip("matplotlib")
    from lambda_gelu.figures import inspection_figure  # noqa: PLC0415 - needs matplotlib

    report = inspect_sites(model, observed(model), tolerance_db=25.0)
    hardness, ser, zeros = inspection_figure(report).axes
    marks = {line.get_label(): list(line.get_xdata()) for line in hardness.lines}
    assert marks["hardness λ"] == [site.hardness_mean for site in report.sites]
    assert marks["λ for 25 dB"] == [site.target_mean for site in report.sites]
    assert [bar.get_width() for bar in ser.patches] == [site.ser_db for site in report.sites]
    assert "25 dB: tolerance" in [text.get_text() for text in ser.get_legend().get_texts()]
    assert zeros.get_xlabel() == "share of a site's outputs (%)"


def test_inspecting_imports_nothing_heavy():
    code = "import lambda_gelu.inspection, sys; assert not {'matplotlib', 'torch._dynamo'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
