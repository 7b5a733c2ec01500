"""README's support table: every row has tests that exist, and every cell is what a run has written."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("tomllib", reason="needs Python 3.11")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def support():
    spec = importlib.util.spec_from_file_location("support_table", ROOT / "scripts" / "support_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_feature_names_tests_that_exist(support):
    written = support.written_tests()
    missing = [
        f"{feature['name']}: {entry}"
        for feature in support.features()
        for entry in feature["tests"]
        if not entry.startswith("ctest::")
        if not any(support.matches(test, entry.partition("[")[0]) for test in written)
    ]
    assert not missing


def test_no_feature_is_without_tests_or_listed_twice(support):
    names = [feature["name"] for feature in support.features()]
    assert len(set(names)) == len(names)
    assert all(feature["tests"] for feature in support.features())


def test_readme_has_the_table_of_the_committed_results(support):
    readme = support.README.read_text()
    assert support.with_table(readme) == readme, "run: python scripts/support_table.py write"
    assert support.table() in readme


@pytest.mark.parametrize(
    ("test", "entry", "expected"),
    [
        ("test_op.py::test_a[float32]", "test_op.py", True),
        ("test_op.py::test_a[float32]", "test_op.py::test_a", True),
        ("test_op.py::test_a[float32]", "test_op.py::test_*", True),
        ("test_op.py::test_a[float32]", "test_op.py::test_a[float32]", True),
        ("test_op.py::test_a[float32]", "test_op.py::test_a[float64]", False),
        ("test_op.py::test_ab", "test_op.py::test_a", False),
        ("test_optim.py::test_a", "test_op.py", False),
        ("facts/fsdp.py::trains[3]", "facts/fsdp.py::*[3]", True),
        ("facts/fsdp.py::trains[2]", "facts/fsdp.py::*[3]", False),
        ("ctest::nn.modules", "ctest::nn.*", True),
    ],
)
def test_an_entry_means_its_tests_and_no_others(support, test, entry, expected):
    assert support.matches(test, entry) == expected


def test_a_cell_says_what_happened(support):
    short = {"import 'timm'": "no timm"}
    skipped = {"could not import 'timm': No module named 'timm'": 2, "needs tea": 1}

    def cell(passed, failed, skipped):
        return support.cell({"passed": passed, "failed": failed, "skipped": skipped}, short)

    assert support.cell(None, short) == cell(0, 0, {}) == "not run"
    assert cell(4, 0, {}) == "4 passed"
    assert cell(4, 1, {}) == "**1 failed**, 4 passed"
    assert cell(4, 0, skipped) == "4 passed, 3 skipped (needs tea, no timm)"


def test_a_run_counts_every_outcome_of_a_file(support, tmp_path):
    file = tmp_path / "test_made_up.py"
    file.write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('number', [1, 2])\n"
        "def test_passes(number): pass\n"
        "def test_fails(): assert False\n"
        "def test_skips(): pytest.skip('needs tea')\n"
        "@pytest.fixture\n"
        "def broken(): raise ValueError\n"
        "def test_cannot_start(broken): pass\n"
    )
    outcomes = support._run_file(file)
    assert support.count(outcomes) == {"passed": 2, "failed": 2, "skipped": {"needs tea": 1}}
    passed = support.select(outcomes, ["test_made_up.py::test_passes"])
    assert [test for test, _, _ in passed] == ["test_made_up.py::test_passes[1]", "test_made_up.py::test_passes[2]"]


def test_a_file_that_cannot_be_collected_counts_for_its_features(support, tmp_path):
    (tmp_path / "test_tea.py").write_text("import pytest\npytest.importorskip('tea')\ndef test_pours(): pass\n")
    (tmp_path / "test_broken.py").write_text("import tea\n")
    outcomes = support._run_file(tmp_path / "test_tea.py") + support._run_file(tmp_path / "test_broken.py")
    assert support.count(support.select(outcomes, ["test_tea.py::test_pours"]))["skipped"]
    assert support.count(support.select(outcomes, ["test_broken.py::test_anything"]))["failed"]
