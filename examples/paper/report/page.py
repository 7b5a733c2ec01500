"""From the records to docs/results.md: its blocks, and the figures beside it."""

from __future__ import annotations

import os
from pathlib import Path

from examples import markdown
from examples.paper import records
from examples.paper.system import System
from examples.paper.systems import SYSTEMS

from . import studies, tables
from .runs import Runs

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "benchmarks" / "results" / "paper"
CPP_RESULTS = ROOT / "benchmarks" / "results" / "paper-cpp"
PAGE = ROOT / "docs" / "results.md"
FIGURES = ROOT / "docs" / "results"
README = ROOT / "README.md"

ALT_TEXTS = {
    "swap": "What the swap to ReLU costs, by system and network",
    "epochs": "The validation metric over the epochs, as it stands and as ReLU",
    "ser": "What the swap costs by the SER of the worst site, after every epoch",
    "hardness": "λ of every site over the epochs, by system and init",
    "profiles": "λ over the depth before training and when it is learned",
    "ranks": "Spearman's correlation of the layer profiles of two inits over the epochs",
    "grid": "Drift and best validation score by temperature and multiplier",
}


def blocks(runs: Runs, cpp_runs: Runs, systems: dict[str, System] = SYSTEMS) -> dict[str, str]:
    """What stands between the markers of the page, by their names."""
    return {
        "table-2": tables.table_2(systems, runs),
        "settings": tables.settings(systems, runs),
        "not-finished": tables.not_finished(runs),
        "hardness": tables.hardness(systems, runs),
        "ranks": tables.rank_table(systems, runs),
        "grid": tables.grid_tables(systems, runs),
        "best-epochs": tables.best_epochs(systems, runs),
        "checkpoints": studies.checkpoints(systems, runs),
        "from-scratch": studies.from_scratch(systems, runs),
        "sites": studies.sites(systems, runs),
        "costs-by-ser": studies.costs_by_ser(systems, runs),
        "language-models": studies.language_models(systems, runs),
        "studies": studies.arms(systems, runs),
        "recovery": studies.recovery(systems, runs),
        "seconds": tables.seconds(systems, runs),
        "cpp": tables.cpp(systems, runs, cpp_runs),
    }


def summary(runs: Runs, systems: dict[str, System] = SYSTEMS) -> dict[str, str]:
    """What stands between the markers of README."""
    return {"paper": studies.summary(systems, runs)}


def write(
    results: Path = RESULTS,
    *,
    cpp_results: Path = CPP_RESULTS,
    page: Path = PAGE,
    figures: Path = FIGURES,
    systems: dict[str, System] = SYSTEMS,
    readme: Path = README,
) -> str:
    """Writes the blocks of the page and of README and every figure; returns what to tell.

    Raises:
        ValueError: where there is no record, or a page lacks a marker.
    """
    from .figures import draw  # noqa: PLC0415 - needs matplotlib

    found = records.read(results)
    if not found:
        raise ValueError(f"{results} holds no records: python -m examples.paper.run makes them")
    runs, cpp_runs = Runs(found), Runs(records.read(cpp_results))
    drawn = draw(systems, runs, figures)
    relative = Path(os.path.relpath(figures, page.parent)).as_posix()
    pictures = {f"figure-{name}": f"![{ALT_TEXTS[name]}]({relative}/{name}.png)" for name in drawn}
    markdown.fill(page, blocks(runs, cpp_runs, systems) | pictures)
    markdown.fill(readme, summary(runs, systems))
    return f"{len(found)} records: wrote {page}, {readme} and {len(drawn)} figures into {figures}"
