"""The report of the way to ReLU: as text, JSON, CSV and picture."""

import csv
import json
import math
import pickle
import subprocess
import sys
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
    assert plain[0] == "1 site is ReLU now"
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
        (lambda plain: plain["sites"].append("act"), r"sites\[2\] .* a mapping, got str"),
        (lambda plain: plain.update(sites=None), "sites is not .* a list, got NoneType"),
        (lambda plain: plain.update(metrics=[1.0]), "metrics is not .* a dict, got list"),
        (lambda plain: plain["metrics"].update(before="good"), r"metrics\.before is not .* a number, got 'good'"),
        (lambda plain: plain["metrics"].update(before=None), r"metrics\.before is not .* a number, got None"),
        (lambda plain: plain["sites"][0].update(also_at="decoder"), r"sites\[0\]\.also_at is not .* a list, got str"),
        (lambda plain: plain["sites"][0].update(hardness_min=None), r"sites\[0\]\.hardness_min is not .* got None"),
        (lambda plain: plain["sites"][0].update(ser_db=[]), r"sites\[0\]\.ser_db is not .* a number, got \[\]"),
    ],
)
def test_what_is_no_report_is_refused(change, message):
    plain = json.loads(REPORT.to_json())
    change(plain)
    with pytest.raises(ValueError, match=message):
        SubstitutionReport.from_dict(plain)


def test_what_cpp_writes_is_read(tmp_path):
    # SubstitutionReport.AsCsvAndJsonHoldsEveryDigit in tests/cpp/nn/substitution_test.cpp
    (tmp_path / "cpp.json").write_text(
        '{"sites": [{"name": "f", "also_at": ["g"], "hardness_min": 1, "hardness_mean": 1, "hardness_max": 1,'
        ' "gate_gap": 0.5, "effective_hardness": 4.5, "ser_db": "inf", "expected_gap": null, "zeros_before": 0.5,'
        ' "zeros_after": 0.75}]}'
    )
    (site,) = SubstitutionReport.from_json(tmp_path / "cpp.json").sites
    assert site == SubstitutedSite("f", ("g",), 1.0, 1.0, 1.0, 0.5, 4.5, math.inf, None, None, 0.5, 0.75)


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


# --- the picture -----------------------------------------------------------------------------------------------------


def figure_of(report):
    pytest.importorskip("matplotlib")
    from lambda_gelu.figures import substitution_figure  # noqa: PLC0415 - needs matplotlib

    return substitution_figure(report)


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def points(axes, label):
    """The x of the marks with this label, by row."""
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return dict(zip(map(int, line.get_ydata()), map(float, line.get_xdata()), strict=True))


def test_the_picture_shows_every_quantity_of_every_site_in_its_unit():
    hardness, ser, zeros, metric = figure_of(REPORT).axes
    assert [axes.get_xlabel() for axes in (hardness, ser, zeros, metric)] == [
        "λ and κ (logarithmic)",
        "SER (dB)",
        "share of a site's outputs (%)",
        "stage",
    ]
    assert all(axes.get_title() for axes in (hardness, ser, zeros, metric))
    assert points(hardness, "hardness λ") == {0: 3.0, 1: 1.0}
    assert points(hardness, "effective hardness κ = λσ") == {0: 2.25}  # of the other site nothing is known
    assert "λ, least to greatest channel" in labels(hardness)
    assert [bar.get_width() for bar in ser.patches] == [23.4375]
    assert points(ser, "measured") == {0: 23.5}
    assert points(zeros, "before: gate below 0.01") == {0: 25.0}
    assert points(zeros, "after: exact zeros of ReLU") == {0: 62.5}
    marks = {line.get_label(): line.get_xdata()[0] for line in ser.lines if "dB:" in str(line.get_label())}
    assert marks == {"22 dB: little loss": 22.0, "30 dB: usual tolerance": 30.0}


def test_the_picture_names_the_sites_from_top_to_bottom_once():
    hardness, ser, *_ = figure_of(REPORT).axes
    assert [tick.get_text() for tick in hardness.get_yticklabels()] == ["encoder.act", "last\n(still λ-GELU)"]
    assert not any(tick.get_text() for tick in ser.get_yticklabels())
    low, high = hardness.get_ylim()
    assert low > 1 and high < 0  # the first row on top


def test_the_picture_shows_the_metric_with_its_values():
    metric = figure_of(REPORT).axes[-1]
    assert metric.get_ylabel() == "perplexity (lower is better)"
    assert [tick.get_text() for tick in metric.get_xticklabels()] == list(REPORT.metrics)
    assert [text.get_text() for text in metric.texts] == ["6.084", "8.212", "6.208", "6"]


def test_no_quantity_is_told_by_colour_alone():
    hardness, ser, zeros, _ = figure_of(REPORT).axes
    for axes in (hardness, zeros):
        marks = [line.get_marker() for line in axes.lines if not str(line.get_label()).startswith("_")]
        assert len(set(marks)) == len(marks)
    assert all(bar.get_hatch() for bar in ser.patches)
    styles = [line.get_linestyle() for line in ser.lines if "dB:" in str(line.get_label())]
    assert len(set(styles)) == 2


def test_panels_without_a_value_are_left_out():
    bare = SubstitutionReport((SubstitutedSite("act", (), 8.0, 8.0, 8.0, 0.09974),))
    (hardness,) = figure_of(bare).axes
    assert labels(hardness) == ["hardness λ"]
    measured = replace(bare.sites[0], measured_ser_db=31.0)
    assert labels(figure_of(SubstitutionReport((measured,))).axes[1])[-1] == "measured"


def test_what_is_not_finite_is_written_instead_of_drawn(tmp_path):
    perfect = replace(SITES[0], ser_db=math.inf, measured_ser_db=None)
    report = SubstitutionReport((perfect,), "loss", False, {"before": 1.0, "swapped": math.inf})
    _, ser, _, metric = figure_of(report).axes
    assert [text.get_text() for text in ser.texts] == ["∞"]
    assert [text.get_text() for text in metric.texts] == ["1", "inf"]
    assert metric.get_xlim() == (-0.5, 1.5)
    report.plot(tmp_path / "report.png")


def test_a_site_whose_swap_leaves_no_signal_is_told_from_one_of_which_nothing_is_known():
    lost, unknown = replace(SITES[0], ser_db=-math.inf), replace(SITES[0], ser_db=None)
    ser = figure_of(SubstitutionReport((SITES[0], lost, unknown))).axes[1]
    assert [(text.get_text(), text.xy[1]) for text in ser.texts] == [("−∞", 1)]
    assert [bar.get_y() + bar.get_height() / 2 for bar in ser.patches] == [0.0]


def test_the_picture_of_many_sites_is_written_and_has_a_bounded_size(tmp_path):
    sites = tuple(
        replace(SITES[0], name=f"a.very.long.path.to.the.activation.of.block.{index}.act") for index in range(200)
    )
    SubstitutionReport(sites, metrics={"before": 1.0}).plot(tmp_path / "report.png")
    header = (tmp_path / "report.png").read_bytes()[:24]
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    assert header.startswith(b"\x89PNG") and width < 4000 and height < 4000
    names = figure_of(SubstitutionReport(sites)).axes[0].get_yticklabels()
    assert len(names) <= 60 and all(len(name.get_text()) <= 30 for name in names)


def test_drawing_leaves_the_settings_of_matplotlib_alone(tmp_path):
    mpl = pytest.importorskip("matplotlib")
    before = dict(mpl.rcParams)
    REPORT.plot(tmp_path / "report.png")
    assert dict(mpl.rcParams) == before


def test_without_matplotlib_the_extra_to_install_is_named(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "lambda_gelu.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'lambda-gelu\[report\]'"):
        REPORT.plot(tmp_path / "report.png")
    assert not list(tmp_path.iterdir())


def test_the_package_does_not_import_what_draws():
    heavy = {"matplotlib", "lambda_gelu.figures", "lambda_gelu.cli"}
    code = f"import sys, lambda_gelu; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
