"""The report of examples/paper: what it says of records whose answer is known, and the page that is committed."""

from __future__ import annotations

import math
import re

import pytest
from paper_records import run, system

from examples import markdown
from examples.paper import records
from examples.paper.report import page, published, runs, studies, tables
from examples.paper.systems import SYSTEMS

ADULT = system("adult", "Adult")
CIFAR = system("resnet18-cifar10", "CIFAR-10")
GPT = system("small-gpt", "WikiText-2", "perplexity", full_size=False)
EVERY = {each.name: each for each in (GPT, CIFAR, ADULT)}
HARDENED = {"hardness": ((1.5, 1.5), (1.6, 2.0), (4.0, 4.0)), "phases": ("learn", "learn", "harden")}


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def row_of(text: str, *starts: str) -> list[str]:
    """The one row whose cells hold these words."""
    (found,) = (row for row in rows(text) if all(any(word in cell for cell in row) for word in starts))
    return found


# --- Markdown ---------------------------------------------------------------------------------------------------------


def test_blocks_go_between_their_markers_and_nowhere_else(tmp_path):
    file = tmp_path / "page.md"
    file.write_text("a\n<!-- one -->\nold\n<!-- /one -->\nb <!-- two --><!-- /two -->\nc\n")
    markdown.fill(file, {"one": "new", "two": r"\1 second"})
    markdown.fill(file, {"one": "newer"})
    expected = "a\n<!-- one -->\n\nnewer\n\n<!-- /one -->\nb <!-- two -->\n\n\\1 second\n\n<!-- /two -->\nc\n"
    assert file.read_text() == expected
    with pytest.raises(ValueError, match=re.escape("lacks the markers <!-- three --> and <!-- /three -->")):
        markdown.fill(file, {"one": "lost", "three": "nowhere"})
    assert file.read_text() == expected


def test_a_mean_has_the_spread_of_its_seeds_and_a_zero_no_sign():
    assert markdown.spread([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"
    assert markdown.spread([-1.25], 2) == "−1.25"
    assert markdown.spread([-0.001], 2) == "0.00"
    assert markdown.spread([], 2) == "–"


# --- measures ---------------------------------------------------------------------------------------------------------


def test_equal_values_share_the_mean_of_their_ranks():
    assert runs.ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]
    assert runs.ranks([1.0000001, 1.0, 2.0]) == [1.5, 1.5, 3.0]  # the last of seven digits is rounding


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [2, 4, 6, 9], 1.0),
        ([1, 2, 3, 4], [9, 6, 4, 2], -1.0),
        ([1, 2, 3], [1, 3, 2], 0.5),  # 1 − 6·2/(3·8)
        ([5, 5, 5], [1, 2, 3], None),
        ([1, 2, 3], [7, 7, 7], None),
    ],
)
def test_the_rank_correlation_of_a_profile_without_order_is_undefined(a, b, expected):
    assert runs.rank_correlation(a, b) == (None if expected is None else pytest.approx(expected))


def test_the_rank_correlation_is_scipys():
    spearmanr = pytest.importorskip("scipy.stats", reason="an independent formula").spearmanr
    a, b = [2.0, 7.5, 7.5, 1.0, 3.0, 9.0, 4.0], [1.0, 2.0, 8.0, 8.0, 8.0, 3.0, 0.5]
    assert runs.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    with pytest.raises(ValueError, match="as many sites, got 1 and 2"):
        runs.rank_correlation([1.0], [1.0, 2.0])


def test_rank_correlations_are_by_epoch_and_seed_and_leave_out_what_is_undefined():
    rising, falling = ((1, 1, 1), (1, 2, 3), (8, 8, 8)), ((1, 2, 3), (3, 2, 1), (8, 8, 8))
    found = runs.Runs(
        [run(ADULT, "uniform", seed, hardness=rising) for seed in (0, 1)]
        + [run(ADULT, "increasing", seed, hardness=falling) for seed in (1, 2)]
    )
    assert runs.rank_correlations(found, "adult", "uniform", "increasing") == {1: [pytest.approx(-1.0)]}


def test_drift_is_the_mean_over_layers_and_epochs_while_learning_and_over_the_run():
    record = run(ADULT, "uniform", hardness=((1, 1), (1.5, 1), (2, 0.5), (8, 8)), phases=["learn"] * 3 + ["harden"])
    assert runs.drift(runs.learning_epochs(record)) == pytest.approx((0.5 + 0 + 0.5 + 0.5) / 4)
    assert runs.drift(record.epochs) == pytest.approx((1.5 + 6 + 7.5) / 6)
    assert runs.learned_hardness(record) == [2, 0.5]
    assert runs.drift(record.epochs[:1]) is None


def test_an_epoch_that_ends_at_the_switch_itself_has_learned_its_lambda():
    phases = ["learn", "harden", "harden", "harden", "done"]
    record = run(ADULT, "uniform", hardness=((1,), (2,), (4,), (6,), (8,)), phases=phases)
    assert runs.learned_hardness(record) == [2]


def test_what_is_never_hardened_learns_to_the_end_whatever_its_phase_is_called():
    record = run(ADULT, "uniform-learned", hardness=((1, 1), (2, 2), (3, 3)), settings={"hardens": False})
    record.epochs[-1]["phase"] = "done"
    assert runs.learned_hardness(record) == [3, 3]


def test_differences_are_of_the_same_seed_and_above_0_where_it_is_worse():
    found = runs.Runs(
        [run(ADULT, "uniform", seed, swapped=(88.0, value)) for seed, value in ((0, 87.0), (1, 80.0), (2, 85.0))]
        + [run(ADULT, "relu", seed, before=(90.0, value), swapped=None) for seed, value in ((1, 82.0), (2, 83.0))]
    )
    before, after = runs.metric("best", "before", "test"), runs.metric("best", "swapped", "test")
    cost = runs.cost
    pairs = found.paired("adult", ("uniform", after), ("relu", before), lambda ours, relu: cost(ADULT, relu, ours))
    assert pairs == [2.0, -2.0]
    assert runs.cost(GPT, 4.0, 5.0) == pytest.approx(25.0)
    assert found.values("adult", "relu", after) == []


# --- Table II ---------------------------------------------------------------------------------------------------------


def test_table_2_shows_the_papers_figures_ours_with_their_spread_and_what_has_not_run():
    found = runs.Runs(
        [run(ADULT, "gelu", seed, before=(85 + seed, 84), swapped=(80, 79 + seed)) for seed in range(5)]
        + [run(ADULT, "uniform", seed, before=(81, 82), swapped=(81, 82), **HARDENED) for seed in range(2)]
        + [run(ADULT, "relu", seed, before=(86, 85), swapped=None) for seed in range(5)]
    )
    text = tables.table_2(EVERY, found)
    assert row_of(text, "GELU → ReLU", "85 → 80") == [
        *("Adult", "`adult`", "GELU → ReLU", "85 → 80", "5"),
        *("87.00 ± 1.58 → 80.00 ± 0.00", "7.00 ± 1.58 points"),
        *("84.00 ± 0.00 → 81.00 ± 1.58", "3.00 ± 1.58 points", "5"),
    ]
    assert row_of(text, "λ-GELU, uniform")[-1] == "2: too few"
    assert row_of(text, "λ-GELU, uniform")[3:5] == ["81 → 81", "0"]
    assert row_of(text, "λ-GELU, increasing")[5:] == ["not run", "–", "–", "–", "0"]
    assert row_of(text, "ReLU from scratch")[3:] == ["–", "–", "86.00 ± 0.00", "–", "85.00 ± 0.00", "–", "5"]
    assert row_of(text, "CIFAR-10")[3:6] == ["GELU 95 → 92; λ-GELU 95 → 95", "–", "not run"]
    assert row_of(text, "WikiText-2")[3] == "GELU fails; λ-GELU fails, left open"
    assert [row[0] for row in rows(text)] == ["Adult"] * 5 + ["CIFAR-10", "WikiText-2"]


def test_the_published_figures_cover_every_row_and_every_system_has_one():
    assert {each.row for each in SYSTEMS.values()} <= set(published.ROWS) == set(published.BEST_EPOCHS)
    for arm in ("gelu", "annealed"):
        assert set(published.SWAPS[arm]) == set(published.ROWS) - {"WikiText-2"}
    assert published.swap("CIFAR-100", "gelu") == (74, 67) and published.swap("WikiText-2", "gelu") is None


def test_records_of_different_settings_are_never_averaged_or_compared():
    def of(name, seed, **settings):
        record = run(ADULT, name, seed)
        record.head["settings"] |= settings
        return record

    same = [of("gelu", 0), of("uniform", 0), of("uniform+lr=1", 0, lr=1.0), of("uniform+lr=1", 1, lr=1.0)]
    assert len(runs.Runs(same).all_of("adult")) == 4
    for other, told in (
        (of("gelu", 1, epochs=9), "adult, gelu, seed 1 and adult, gelu, seed 0 .*epochs = 9 and 4"),
        (of("relu", 1, lr=0.2), "adult, relu, seed 1 and adult, gelu, seed 0 .*lr = 0.2 and 0.1"),
        (of("uniform", 1, arm=same[1].head["settings"]["arm"] | {"start": 0.5}), r"arm\.start = 0.5 and 0.25"),
        (of("uniform+lr=1", 2, lr=2.0), "lr = 2.0 and 1.0"),
        (of("gelu", 1, examples=64), "adult, gelu, seed 1: made of 64 examples"),
    ):
        with pytest.raises(ValueError, match=told):
            runs.Runs([*same, other])


def test_runs_that_did_not_finish_are_in_no_table_and_are_told():
    found = runs.Runs(
        [run(ADULT, "gelu"), run(ADULT, "gelu", 1, status="non-finite loss"), run(GPT, "relu", status=None)]
    )
    assert [record.seed for record in found.of("adult", "gelu")] == [0] and not found.has("small-gpt")
    text = tables.not_finished(found)
    assert "`adult`, gelu, seed 1: non-finite loss in epoch 2, step 15" in text
    assert "`small-gpt`, relu, seed 0: not finished, 2 epochs" in text
    assert tables.not_finished(runs.Runs([run(ADULT, "gelu")])) == "Every run that has a record finished."


def test_the_settings_say_what_was_run_where_how_long_and_how_to_run_it_again():
    relu, neurons = run(ADULT, "relu", swapped=None), run(ADULT, "uniform-neurons")
    relu.head["sites"], neurons.head["parameters"] = [], 9999
    row = row_of(tables.settings(EVERY, runs.Runs([relu, neurons])), "`adult`")
    assert row[1:6] == ["adult, small", "the paper's", "1,234", "2", "SGD, 0.1, constant"]
    assert row[6:12] == ["0.0001", "8", "4", "0.1, 10", "2", "1.0"]
    assert row[12:] == ["a processor, PyTorch 2.13.0", "`python -m examples.paper.run adult`"]


# --- further tables ---------------------------------------------------------------------------------------------------


def test_the_overhead_is_the_median_share_of_an_epoch_and_training_is_compared_with_gelu():
    slow = {"train": 9.0, "validation": 1.0, "as_relu": 1.0, "statistics": 1.0, "log": 0.0}
    quick = {"train": 97.0, "validation": 1.0, "as_relu": 1.0, "statistics": 0.5, "log": 0.5}
    short = {"hardness": ((1.0,), (1.0,))}  # epoch 0, in which nothing is trained, counts for nothing
    found = [run(ADULT, "gelu", seconds=slow, **short), run(ADULT, "relu", seconds=slow | {"train": 4.5}, **short)]
    found += [run(ADULT, "uniform", seconds=slow | {"train": 9.9}, **short)]
    (row,) = rows(tables.seconds(EVERY, runs.Runs(found)))
    assert row[:6] == ["`adult`", "9.00", "4.50", "9.90", "0.500", "1.100"] and row[6].endswith("**no**")
    (row,) = rows(tables.seconds(EVERY, runs.Runs([run(ADULT, "gelu", seconds=quick, **short)])))
    assert row[6] == "2.00 %: yes"


def test_best_epochs_stand_beside_the_papers():
    learned = [run(ADULT, "uniform-learned", seed, best_epoch=seed, settings={"hardens": False}) for seed in (1, 2)]
    hardened = [run(ADULT, "uniform", 1, best_epoch=1, **HARDENED)]
    text = tables.best_epochs(EVERY, runs.Runs([*learned, *hardened, run(ADULT, "gelu", best_epoch=2)]))
    assert row_of(text, "uniform")[2:] == ["46 of 50?", "1.5 ± 0.7", "1.0", "2", "2, 1"]
    assert row_of(text, "gelu")[2:] == ["41 of 50?", "2.0", "–", "2", "1"]


def test_the_grid_shows_drift_and_the_best_score_beside_gelus_of_the_same_seed():
    found = [run(ADULT, "gelu", seed, before=(90 + seed, 0)) for seed in (0, 1)]
    found += [
        run(ADULT, "uniform-tau0.1-alpha10", seed, before=(90.5 + seed, 0), hardness=((1, 1), (1.5, 1), (1.5, 2)))
        for seed in (0, 1, 7)
    ]
    found.append(run(ADULT, "uniform-tau0.5-alpha1", 0, before=(89, 0), hardness=((1, 1), (1, 1))))
    text = tables.grid_tables(EVERY, runs.Runs(found))
    assert row_of(text, "τ = 0.1") == ["τ = 0.1", "not run", "0.3750 ± 0.0000 (0.50 ± 0.00)"]
    assert row_of(text, "τ = 0.5") == ["τ = 0.5", "0.0000 (−1.00)", "not run"]


def test_profiles_say_how_long_lambda_was_learned_and_prefer_the_runs_that_learn_to_the_end():
    found = [run(ADULT, "uniform", seed, **HARDENED) for seed in range(5)]
    row = row_of(tables.hardness(EVERY, runs.Runs(found)), "uniform")
    assert row[2:] == ["the first 1 epoch", "1.800 ± 0.000", "1.600 ± 0.000", "2.000 ± 0.000"] + [
        *("0.3000 ± 0.0000", "1.2500 ± 0.0000", "5")
    ]
    learned = ((1.5, 1.5), (1.6, 2.0), (1.7, 2.5))
    found += [run(ADULT, "uniform-learned", 0, hardness=learned, settings={"hardens": False})]
    row = row_of(tables.hardness(EVERY, runs.Runs(found)), "uniform")
    assert row[2:4] == ["all 2 epochs", "2.100"] and row[-1] == "1: too few"
    neurons = run(ADULT, "uniform-neurons", **HARDENED)
    neurons.epochs[1] |= {"hardness_min": [1.2, 1.4], "hardness_max": [3.0, 2.5]}
    row = row_of(tables.hardness(EVERY, runs.Runs([neurons])), "uniform, per neuron")
    assert row[2:6] == ["the first 1 epoch", "1.800", "1.200", "3.000"]


def test_the_ranks_at_the_switch_are_those_of_the_last_epoch_of_learning():
    increasing = {"hardness": ((1.1, 2.0), (2.0, 1.5), (4.0, 4.0)), "phases": HARDENED["phases"]}
    found = [run(ADULT, "uniform", seed, **HARDENED) for seed in (0, 1)]
    found += [run(ADULT, "increasing", seed, **increasing) for seed in (0, 1)]
    row = row_of(tables.rank_table(EVERY, runs.Runs(found)), "uniform, increasing")
    assert row[2:6] == ["undefined", "−1.00 ± 0.00", "undefined", "−1.00 ± 0.00"] and row[-1] == "2"


def test_a_language_model_is_judged_by_the_worst_of_its_seeds():
    def of(values):
        return [run(GPT, "uniform", s, before=(9, 4.0), swapped=(9, v), **HARDENED) for s, v in enumerate(values)]

    relu = [run(GPT, "relu", seed, before=(9, 3.2), swapped=None) for seed in (0, 1)]
    text = studies.language_models(EVERY, runs.Runs(of((4.004, 4.016)) + relu))
    assert row_of(text, "`uniform`", "best as it stands")[3:] == [
        *("4.000 ± 0.000", "4.010 ± 0.008", "0.25 ± 0.21 %: yes", "25.31 ± 0.27 %")
    ]
    text = studies.language_models(EVERY, runs.Runs(of((4.0, 4.024))))
    assert row_of(text, "`uniform`", "best as it stands")[5].endswith("**no**")
    assert studies.language_models(EVERY, runs.Runs([run(ADULT, "gelu")])) == "Not run."


def test_a_study_stands_beside_the_protocol_and_relu_from_scratch_seed_by_seed():
    found = [run(ADULT, "uniform", seed, swapped=(88, 87 + seed), **HARDENED) for seed in (0, 1)]
    found += [run(ADULT, "uniform-cosine", seed, swapped=(88, 86 + 2 * seed), **HARDENED) for seed in (0, 1)]
    found += [run(ADULT, "relu", seed, before=(90, 88), swapped=None) for seed in (0, 1)]
    row = row_of(studies.arms(EVERY, runs.Runs(found)), "`uniform-cosine`")
    assert row[1] == "schedule cosine" and row[2] == "10.0 ± 0.0"
    assert row[8:11] == ["2.0 ± 0.0", "0.50 ± 0.71 points", "1.00 ± 1.41 points"]


def test_the_cost_of_the_swap_is_shown_by_the_ser_of_the_worst_site():
    soft, hard = run(ADULT, "gelu", swapped=(70, 0)), run(ADULT, "uniform", swapped=(89, 0))
    for epoch in hard.epochs:
        epoch["ser_db"] = [45.0, 25.0]
    hard.epochs[-1]["ser_db"] = [None, 31.0]  # None: infinite
    again = run(ADULT, "gelu-recovered", swapped=(70, 0))  # the same until it was swapped: counts once
    (row,) = rows(studies.costs_by_ser(EVERY, runs.Runs([soft, again, hard, run(ADULT, "relu", swapped=None)])))
    assert row == ["`adult`", "points", "–", "20.00 ± 0.00 (2)", "–", "–", "–", "1.00 (1)", "1.00 (1)"]


def test_relu_from_scratch_is_the_baseline_of_every_swapped_network_seed_by_seed():
    found = [run(ADULT, "gelu", seed, swapped=(0, 80 + seed)) for seed in (0, 1)]
    found += [run(ADULT, "relu", seed, before=(0, 85), swapped=None) for seed in (0, 1)]
    row = row_of(studies.from_scratch(EVERY, runs.Runs(found)), "GELU → ReLU")
    assert row[2:4] == ["4.50 ± 0.71 points", "4.50 ± 0.71 points"] and row[4].startswith("34.50")
    found += [run(ADULT, "uniform", seed, before=(0, 84), swapped=(0, 83.5)) for seed in (0, 1)]
    (row,) = rows(studies.summary(EVERY, runs.Runs(found)))
    assert [cell.split(" ±")[0] for cell in row] == ["adult, small", "8.50", "0.50", "1.50", "2: too few"]


def test_what_the_sites_are_given_is_told_from_the_lowest_to_the_highest_mean_over_the_seeds():
    found = [run(ADULT, "uniform", seed, **HARDENED) for seed in (0, 1)]
    for seed, record in enumerate(found):
        record.epochs[-1] |= {"sigma": [0.5 + seed, 0.25], "ser_db": [None, 20.0] if seed else [10.0, 30.0]}
    row = row_of(studies.sites(EVERY, runs.Runs(found)), "`adult`")
    assert row[2:] == ["4.00", "0.25 to 1.00", "4.00", "10.00 to 25.00"]


def test_recovery_shows_every_stage_and_what_is_left_of_the_cost():
    stages = {"corrected": (88, 86.5), "recovered": (89, 88.75)}
    found = [run(ADULT, "gelu-recovered", seed, swapped=(85, 84), stages=stages) for seed in range(5)]
    row = row_of(studies.recovery(EVERY, runs.Runs(found)), "trained on after the swap")
    assert [cell.split(" ±")[0] for cell in row[2:9]] == ["89.00", "84.00", "86.50", "88.75", "5.00", "2.50", "0.25"]


@pytest.mark.parametrize(("shift", "verdict"), [(0.05, "0.5 spreads: within"), (0.3, "3.0 spreads: **beyond**")])
def test_cpp_agrees_where_its_mean_is_within_the_spread_over_seeds(shift, verdict):
    def of(values):
        return runs.Runs(run(ADULT, "uniform", s, hardness=((1.0,), (v,))) for s, v in enumerate(values))

    text = tables.cpp(EVERY, of((1.5, 1.6, 1.7)), of((1.5 + shift, 1.6 + shift, 1.7 + shift)))
    assert row_of(text, "`site0`")[4:] == [verdict, f"{shift:.1e}", "3, 3"]
    assert row_of(text, "87.00")[1:] == ["89.00 ± 0.00", "89.00 ± 0.00", "87.00 ± 0.00", "87.00 ± 0.00"]
    assert tables.cpp(EVERY, of((1.5,)), runs.Runs([])) == "Not run."


# --- the page and the figures -----------------------------------------------------------------------------------------


def every_kind_of_record() -> list[records.Record]:
    found = []
    for each in (ADULT, GPT):
        for seed in (0, 1):
            found += [run(each, "gelu", seed), run(each, "relu", seed, swapped=None)]
            for index, mode in enumerate(runs.MODES):
                lambdas = [
                    [1.2 + 0.1 * index * site + 0.01 * seed for site in range(7)],
                    [1.3 + site for site in range(7)],
                ]
                found.append(run(each, mode, seed, hardness=[*lambdas, [8.0] * 7], phases=HARDENED["phases"]))
    found += [run(ADULT, f"uniform-tau{tau}-alpha{alpha}") for tau in (0.1, 0.5) for alpha in (1, 10)]
    return [*found, run(ADULT, "uniform-30db", **HARDENED), run(ADULT, "gelu", 9, status="non-finite loss")]


def test_the_report_fills_a_page_from_the_records_alone_and_draws_every_figure(tmp_path):
    pytest.importorskip("matplotlib", reason="the figures")
    for record in every_kind_of_record():
        records.write(tmp_path / "records", record)
    names = [*page.blocks(runs.Runs([]), runs.Runs([]), EVERY), *(f"figure-{name}" for name in page.ALT_TEXTS)]
    target, readme = tmp_path / "page.md", tmp_path / "README.md"
    readme.write_text("<!-- paper --><!-- /paper -->")
    target.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in names))
    where = {"cpp_results": tmp_path / "nothing", "page": target, "figures": tmp_path / "figures", "readme": readme}
    told = page.write(tmp_path / "records", systems=EVERY, **where)
    assert told.startswith(f"{len(every_kind_of_record())} records")
    for name, text in page.ALT_TEXTS.items():
        picture = tmp_path / "figures" / f"{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 200_000
        assert f"![{text}](figures/{name}.png)" in target.read_text()
    assert "small-gpt, small" in readme.read_text()
    with pytest.raises(ValueError, match="holds no records"):
        page.write(tmp_path / "nothing", **where)


PAGE = page.PAGE.read_text(encoding="utf-8") if page.PAGE.exists() else ""
FILLED = re.compile(r"<!-- (?P<name>[\w-]+) -->\n\n(?P<text>.*?)\n\n<!-- /(?P=name) -->", re.DOTALL)


def test_the_committed_page_is_what_the_committed_records_say():
    found, cpp_found = records.read(page.RESULTS), records.read(page.CPP_RESULTS)
    expected = page.blocks(runs.Runs(found), runs.Runs(cpp_found))
    filled = {match["name"]: match["text"] for match in FILLED.finditer(PAGE)}
    for name, text in page.summary(runs.Runs(found)).items():
        assert f"<!-- {name} -->\n\n{text}\n\n<!-- /{name} -->" in page.README.read_text(encoding="utf-8")
    pictures = {name for name in filled if name.startswith("figure-")}
    assert filled.keys() - pictures == expected.keys()
    for name, text in expected.items():
        assert filled[name] == text, f"{name}: python -m examples.paper.run report"
    for name in pictures:
        assert (page.FIGURES / f"{name.removeprefix('figure-')}.png").stat().st_size < 200_000


def test_the_figures_of_the_committed_records_are_drawn_again(tmp_path):
    pytest.importorskip("matplotlib", reason="the figures")
    from examples.paper.report.figures import draw  # noqa: PLC0415

    drawn = draw(SYSTEMS, runs.Runs(records.read(page.RESULTS)), tmp_path)
    assert sorted(file.stem for file in page.FIGURES.glob("*.png")) == sorted(drawn)


def test_measured_figures_in_the_prose_stand_in_a_table_of_the_page():
    prose, blocks = FILLED.sub("", PAGE), " ".join(match["text"] for match in FILLED.finditer(PAGE))
    known = {float(text.replace("−", "-")) for text in re.findall(r"−?\d+(?:\.\d+)?", blocks)}
    for text in re.findall(r"(?<![\w.`/-])−?\d+\.\d+", re.sub(r"`[^`]*`|\(http[^)]*\)|arXiv [\d.]+", "", prose)):
        value = float(text.replace("−", "-"))
        assert any(math.isclose(value, other) for other in known), f"{text} is in no table"
