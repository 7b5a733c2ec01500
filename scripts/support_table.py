"""README's support table: every cell counts tests that ran under that version of PyTorch.

    python scripts/support_table.py run [--build-dir <folder>] [--again] [test_x.py ...]
    python scripts/support_table.py write

`run` takes tests/python, one process a file, with the interpreter that it is started with, and the C++ tests of a build
folder. What it learns goes to docs/support/<version of torch>.json. It may be stopped and started again: files whose
outcome is known for these very sources are not run twice (build/support has the outcomes; --again forgets them).
`write` makes the table in README from those files and docs/support.toml, which says what tests a feature has.
"""

from __future__ import annotations

import argparse
import ast
import collections
import datetime
import fnmatch
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "python"
FACTS = TESTS / "distributed" / "facts"
RESULTS = ROOT / "docs" / "support"
README = ROOT / "README.md"
THIS_TABLE = "test_support_table.py"  # it compares README with results that are being made
TIMEOUT = 1800  # s, for one file

_TABLE = re.compile(r"(<!-- support -->\n).*?(<!-- /support -->)", re.DOTALL)
_FACT = re.compile(r"test_distributed\.py::test_fact\[(?P<name>\w+)-(?P<ranks>\d+)\]")


# --- names of tests --------------------------------------------------------------------------------------------------
#
# "test_op.py::test_double_backward[float32]", "facts/ddp.py::name[ranks]" and "ctest::name". An entry of
# docs/support.toml is a pattern of them: a file, a file with a test, or one with parameters.


def matches(test: str, entry: str) -> bool:
    """Whether an entry means this test."""
    pattern = entry.replace("[", "[[]")
    return any(fnmatch.fnmatchcase(test, pattern + rest) for rest in ("", "::*", "[[]*"))


def written_tests() -> list[str]:
    """Every test that the sources define, without parameters."""
    return [
        f"{folder}{path.name}::{node.name}"
        for folder, paths in (("", TESTS.glob("test_*.py")), ("facts/", FACTS.glob("*.py")))
        for path in sorted(paths)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        if node.name.startswith("test") or any("fact" in ast.unparse(each) for each in node.decorator_list)
    ]


def _named_by_fact(test: str) -> str:
    """A fact under the file that states it."""
    if fact := _FACT.fullmatch(test):
        for path in FACTS.glob("*.py"):
            if re.search(rf"^def {fact['name']}\(", path.read_text(), re.MULTILINE):
                return f"facts/{path.name}::{fact['name']}[{fact['ranks']}]"
    return test


# --- running ---------------------------------------------------------------------------------------------------------

Outcome = tuple[str, str, str]
"""Test; "passed", "failed" or "skipped"; why it was skipped."""


class Recorder:
    """A plugin of pytest that writes one outcome a test to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        worst = self.outcomes.get(report.nodeid, ("passed", ""))
        if report.outcome == "failed" or (report.outcome == "skipped" and worst[0] == "passed"):
            worst = (report.outcome, _reason(report) if report.outcome == "skipped" else "")
        self.outcomes[report.nodeid] = worst

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome != "passed":
            self.outcomes[report.nodeid] = (report.outcome, _reason(report) if report.outcome == "skipped" else "")

    def pytest_sessionfinish(self) -> None:
        # "tests/python/test_x.py::test_y[a/b]" without its folder
        found = [(test[test.partition("::")[0].rfind("/") + 1 :], *outcome) for test, outcome in self.outcomes.items()]
        self.path.write_text(json.dumps(found))


def _reason(report: Any) -> str:
    if hasattr(report, "wasxfail"):
        return f"fails as expected: {report.wasxfail}"
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def pytest_configure(config: Any) -> None:
    """Where pytest has this file as a plugin."""
    config.pluginmanager.register(Recorder(Path(os.environ["SUPPORT_TABLE_OUTCOMES"])))


def _run_file(path: Path) -> list[Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder) / "outcomes.json"
        environment = {
            **os.environ,
            "SUPPORT_TABLE_OUTCOMES": str(outcomes),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", Path(__file__).stem, str(path)]
        try:
            code = subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=TIMEOUT).returncode
        except subprocess.TimeoutExpired:
            code = -1
        found = json.loads(outcomes.read_text()) if outcomes.exists() else []
    if code not in (0, 1, 5):  # a crash, whatever the tests before it did
        found.append((f"{path.name}::process", "failed", ""))
    return [(_named_by_fact(test), outcome, why) for test, outcome, why in found]


def _run_ctest(build: Path) -> list[Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "ctest.xml"
        jobs = str(os.environ.get("JOBS") or os.cpu_count())
        command = ["ctest", "--test-dir", str(build), "--no-tests=error", "-j", jobs, "--output-junit", str(report)]
        subprocess.run([*command, "--output-on-failure"], check=False)
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    if not cases:
        return [("ctest::process", "failed", "")]
    outcome = {"run": "passed", "notrun": "skipped", "disabled": "skipped"}

    def why(case: ET.Element) -> str:
        skipped = case.find("skipped")
        return "" if skipped is None else skipped.get("message", "")

    found = [(f"ctest::{case.get('name')}", outcome.get(case.get("status", ""), "failed"), why(case)) for case in cases]
    return list(dict.fromkeys(found))  # CMake may list a test again each time it is discovered


_LIBRARY = ("src", "include", "cmake", "tests/cpp")
_PACKAGE = (*_LIBRARY[:3], "python", "tests/consumer", "tests/python", "examples", "benchmarks", "scripts")


def _sources(folders: Iterable[str]) -> str:
    """A digest of what the outcome of the C++ tests depends on, or of a file of tests/python, but for that file."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*")):
        is_code = path.suffix in {".py", ".h", ".cpp", ".cu", ".cmake", ".txt", ".in"}
        if is_code and not (path.parent == TESTS and path.name.startswith("test_")) and path != Path(__file__):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def run(files: list[str], build: Path | None, again: bool) -> Path:
    """Runs what is not known yet, and writes docs/support/<version of torch>.json."""
    import torch  # noqa: PLC0415 - `write` and the tests of the table need none

    import lambda_gelu  # noqa: PLC0415

    version = ".".join(torch.__version__.split(".")[:2])
    known = ROOT / "build" / "support" / version
    known.mkdir(parents=True, exist_ok=True)
    sources = _sources(_PACKAGE)
    outcomes: list[Outcome] = []
    unknown: list[str] = []
    for path in sorted(TESTS.glob("test_*.py")):
        if path.name == THIS_TABLE:
            continue
        cache = known / f"{path.stem}.json"
        key = hashlib.sha256(sources.encode() + path.read_bytes()).hexdigest()
        cached = json.loads(cache.read_text()) if cache.exists() else {}
        wanted = path.name in files or not files
        if wanted and (again or cached.get("key") != key):
            cached = {"key": key, "outcomes": _run_file(path)}
            cache.write_text(json.dumps(cached))
        if cached.get("key") == key:
            outcomes += cached["outcomes"]
        else:
            unknown.append(path.name)
    cache = known / "cpp.json"
    key = _sources(_LIBRARY)
    if build is not None:
        cache.write_text(json.dumps({"key": key, "outcomes": _run_ctest(build)}))
    cached = json.loads(cache.read_text()) if cache.exists() else {}
    if cached.get("key") == key:
        outcomes += cached["outcomes"]
    else:
        unknown.append("the C++ tests (--build-dir)")
    if unknown:
        print("not run with these sources, and not counted:", ", ".join(unknown), file=sys.stderr)

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    result = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": " ".join([platform.system(), platform.machine()]),
        "package": lambda_gelu.__version__,
        "commit": commit.stdout.strip(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "all": count(outcomes),
        "failed": sorted(test for test, outcome, _ in outcomes if outcome == "failed"),
        "features": {each["name"]: count(select(outcomes, each["tests"])) for each in features()},
    }
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"{version}.json"
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return out


# --- counting --------------------------------------------------------------------------------------------------------


def select(outcomes: Iterable[Outcome], entries: list[str]) -> Iterator[Outcome]:
    """The outcomes of a feature. A file that could not be collected counts for every entry of it."""
    for outcome in outcomes:
        if any(matches(outcome[0], entry) or entry.startswith(f"{outcome[0]}::") for entry in entries):
            yield outcome


def count(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """How many passed and failed, and how many were skipped for what reason."""
    outcomes = list(outcomes)
    number = collections.Counter(outcome for _, outcome, _ in outcomes)
    skipped = collections.Counter(why for _, outcome, why in outcomes if outcome == "skipped")
    return {"passed": number["passed"], "failed": number["failed"], "skipped": dict(sorted(skipped.items()))}


# --- the table -------------------------------------------------------------------------------------------------------


def configuration() -> dict[str, Any]:
    """docs/support.toml."""
    import tomllib  # noqa: PLC0415 - Python 3.11

    return tomllib.loads((ROOT / "docs" / "support.toml").read_text())


def features() -> list[dict[str, Any]]:
    """The rows of the table."""
    return [feature for group in configuration()["group"] for feature in group["feature"]]


def cell(counts: dict[str, Any] | None, short: dict[str, str]) -> str:
    """What a version did with a feature."""
    if not counts or not (counts["passed"] or counts["failed"] or counts["skipped"]):
        return "not run"
    parts = [f"**{counts['failed']} failed**"] if counts["failed"] else []
    parts += [f"{counts['passed']} passed"] if counts["passed"] else []
    if counts["skipped"]:
        reasons = {next((word for part, word in short.items() if part in why), why) for why in counts["skipped"]}
        parts.append(f"{sum(counts['skipped'].values())} skipped ({', '.join(sorted(reasons))})")
    return ", ".join(parts)


def table() -> str:
    """The table of README."""
    found = configuration()
    versions, short = found["versions"], found["short"]
    files = [RESULTS / f"{version}.json" for version in versions]
    results = [json.loads(file.read_text()) if file.exists() else {} for file in files]

    def row(name: str, counts: list[dict[str, Any] | None]) -> str:
        return f"| {name} | {' | '.join(cell(each, short) for each in counts)} |"

    lines = [f"| tests, by PyTorch | {' | '.join(versions)} |", "| --- |" + " --- |" * len(versions)]
    for group in found["group"]:
        lines.append(f"| **{group['name']}** |" + " |" * len(versions))
        lines += [
            row(feature["name"], [result.get("features", {}).get(feature["name"]) for result in results])
            for feature in group["feature"]
        ]
    lines.append(row("**every test**", [result.get("all") for result in results]))
    ran = [f"{each['torch']} (Python {each['python']}, {each['platform']}, {each['date']})" for each in results if each]
    return "\n".join([*lines, "", f"Ran: {'; '.join(ran)}." if ran else "Nothing has run yet."])


def with_table(readme: str) -> str:
    """README with the table of today."""
    return _TABLE.sub(lambda marks: f"{marks[1]}{table()}\n{marks[2]}", readme)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run the tests with this interpreter")
    running.add_argument("files", nargs="*", help="only these of tests/python, test_x.py; default: all")
    running.add_argument("--build-dir", type=Path, help="a CMake build for this torch; without it, no C++ test runs")
    running.add_argument("--again", action="store_true", help="run what is known, too")
    commands.add_parser("write", help="write the table into README.md")
    options = parser.parse_args()
    if options.command == "run":
        print("wrote", run(options.files, options.build_dir, options.again))
    else:
        README.write_text(with_table(README.read_text()))


if __name__ == "__main__":
    main()
