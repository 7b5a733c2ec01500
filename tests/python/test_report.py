"""The report of the way to ReLU: as text, JSON, CSV and picture."""

import csv
import json
import math
import pickle
from dataclasses import fields, replace

import pytest

from lambda_gelu import SubstitutedSite, SubstitutionReport

SITES = (
    SubstitutedSite(
        name="encoder.act",
        also_at=("decoder.act", "head.act"),
        hardness_min=2.0,
        hardness_mean=3.0,
        hardness_max=4.0,
        gate_gap=0.3989,
        effective_hardness=2.25,
        ser_db=23.4375,
        measured_ser_db=23.5,
        expected_gap=0.0125,
        zeros_before=0.25,
        zeros_after=0.625,
        predicted_cost=0.5,
        measured_cost=0.375,
        correction="fc2.bias",
    ),
    SubstitutedSite(
        "last", (), 1.0, 1.0, 1.0, 0.7979, correction="no successor: added to a residual", substituted=False
    ),
)
REPORT = SubstitutionReport(
    SITES, "perplexity", False, {"recovered": 6.0, "before": 6.084, "swapped": 8.212, "corrected": 6.208}
)


# --- what it says ----------------------------------------------------------------------------------------------------


def test_stages_come_in_the_order_of_the_way_whatever_order_they_were_given_in():
    assert list(REPORT.metrics) == ["before", "swapped", "corrected", "recovered"]
    later = SubstitutionReport(SITES, metrics={"before": 1.0}).with_metrics(corrected=3.0).with_metrics(swapped=2)
    assert list(later.metrics.items()) == [("before", 1.0), ("swapped", 2.0), ("corrected", 3.0)]


def test_a_stage_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="before, swapped, corrected, recovered, got 'after'"):
        SubstitutionReport(SITES, metrics={"after": 1.0})
    with pytest.raises(ValueError, match="got 'after'"):
        REPORT.with_metrics(after=1.0)
    with pytest.raises(ValueError, match="got 'after'"):
        REPORT.cost("after")


@pytest.mark.parametrize(("higher", "cost"), [(True, 1.5), (False, -1.5), (None, None)])
def test_a_cost_is_positive_where_the_metric_became_worse(higher, cost):
    report = SubstitutionReport(SITES, "accuracy", higher, {"before": 96.0, "swapped": 94.5})
    assert report.cost("swapped") == cost
    assert report.cost("recovered") is None  # nobody measured it


def test_sites_that_were_left_are_told_from_those_that_are_relu():
    assert (REPORT.substituted, REPORT.left) == (("encoder.act",), ("last",))
    lines = str(REPORT).splitlines()
    assert lines[:2] == ["1 of 2 sites are ReLU now", "still λ-GELU: last"]


def test_the_table_has_the_columns_that_have_values():
    known = SubstitutedSite("act", (), 8.0, 8.0, 8.0, 0.09974)
    plain = str(SubstitutionReport((known,))).splitlines()
    assert plain[0] == "1 sites are ReLU now"
    assert plain[1].split("  ") == ["site", "λ min", "λ mean", "λ max", "gate gap"]
    assert len(plain) == 4
    header = str(REPORT).splitlines()[2]
    titles = ["κ", "SER dB", "measured dB", "E[gap]", "zeros before", "zeros after", "predicted cost", "measured cost"]
    assert [title for title in [*titles, "correction"] if title not in header] == []
    assert str(REPORT).splitlines()[4].split()[:3] == ["encoder.act,", "decoder.act,", "head.act"]
    cells = str(REPORT).splitlines()[4].split()[3:]
    assert cells[:9] == ["2", "3", "4", "0.3989", "2.25", "23.4", "23.5", "0.0125", "25.0%"]
    assert cells[9:] == ["62.5%", "0.5", "0.375", "fc2.bias"]
    assert str(REPORT).splitlines()[5].split()[5:13] == ["-"] * 8


def test_the_table_of_the_metric_shows_the_change_against_before():
    *_, header, _, before, swapped, corrected, recovered = str(REPORT).splitlines()
    assert header.split("  ")[-2:] == ["perplexity, lower is better", "against before"]
    assert before.split() == ["before", "6.084"]
    assert swapped.split() == ["swapped", "8.212", "+2.128"]
    assert corrected.split() == ["corrected", "6.208", "+0.124"]
    assert recovered.split() == ["recovered", "6", "-0.084"]


def test_a_table_has_aligned_columns():
    lines = str(REPORT).split("\n\n")[0].splitlines()[2:]
    edges = [index for index, mark in enumerate(lines[1]) if mark == " "]
    assert all(line[edge] == " " for line in lines for edge in edges if edge < len(line))


# --- files -----------------------------------------------------------------------------------------------------------


def test_json_gives_back_the_same_report(tmp_path):
    path = tmp_path / "report.json"
    text = REPORT.to_json(path)
    assert path.read_text(encoding="utf-8") == text
    assert SubstitutionReport.from_json(path) == REPORT
    assert SubstitutionReport.from_dict(json.loads(text)) == REPORT
    assert json.loads(text) == REPORT.to_dict()


def test_json_is_strict_and_keeps_what_json_has_no_number_for():
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lost = replace(SITES[0], measured_ser_db=math.inf)
    report = SubstitutionReport(
        (lost,), "perplexité λ", False, {"before": 6.0, "swapped": math.inf, "recovered": math.nan}
    )
    text = report.to_json()
    assert "perplexité λ" in text
    again = SubstitutionReport.from_dict(json.loads(text, parse_constant=refuse))
    assert again.sites[0].measured_ser_db == math.inf
    assert again.metrics["swapped"] == math.inf and math.isnan(again.metrics["recovered"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: plain.pop("sites"), "report .* missing sites"),
        (lambda plain: plain.update(version=3), "report .* unknown version"),
        (lambda plain: plain["sites"][1].pop("gate_gap"), r"sites\[1\] .* missing gate_gap"),
        (lambda plain: plain["sites"][0].update(sigma=1), r"sites\[0\] .* unknown sigma"),
        (lambda plain: plain["metrics"].update(after=1), "got 'after'"),
    ],
)
def test_what_is_no_report_is_refused(change, message):
    plain = json.loads(REPORT.to_json())
    change(plain)
    with pytest.raises(ValueError, match=message):
        SubstitutionReport.from_dict(plain)


def test_csv_has_a_row_for_every_site_and_a_column_for_every_attribute(tmp_path):
    REPORT.to_csv(tmp_path / "sites.csv")
    with (tmp_path / "sites.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == [item.name for item in fields(SubstitutedSite)]
    assert first["also_at"] == "decoder.act head.act"
    assert float(first["ser_db"]) == 23.4375 and second["ser_db"] == ""
    assert second["correction"] == "no successor: added to a residual"
    assert [first["substituted"], second["substituted"]] == ["True", "False"]


def test_a_report_is_pickled():
    assert pickle.loads(pickle.dumps(REPORT)) == REPORT
