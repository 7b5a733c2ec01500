"""Several processes: each fact of tests/python/distributed/facts, from one run of torchrun that proves them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

FOLDER = Path(__file__).parent / "distributed"
sys.path.insert(0, str(FOLDER))
try:
    import facts
    from group import FACTS, WORLD_SIZE
finally:
    sys.path.remove(str(FOLDER))

TIMEOUT = 300  # s: a fact that waits for ever must not keep the others from being reported


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory) -> dict[str, str | None]:
    folder = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD_SIZE}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.run(
        [*command, str(FOLDER / "worker.py"), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    results = folder / "results.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    missing = f"it did not run to its end; torchrun exited with {process.returncode}:\n{process.stdout[-10000:]}"
    return {key(name, size): missing for name, size in FACTS} | found


def key(name: str, size: int) -> str:
    return f"{name}[{size}]"


@pytest.mark.parametrize(("name", "size"), FACTS, ids=[f"{name}-{size}" for name, size in FACTS])
def test_fact(name, size, outcomes):
    outcome = outcomes[key(name, size)]
    if outcome is not None:
        pytest.fail(outcome, pytrace=False)


def test_every_file_of_facts_is_run():
    files = {path.stem for path in (FOLDER / "facts").glob("*.py")} - {"__init__", "training"}
    assert files == set(facts.__all__)
