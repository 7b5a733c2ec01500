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


# --- registration of the sharding rules ------------------------------------------------------------------------------

REGISTERED_BY_IMPORT = """
import importlib.util, sys
import lambda_gelu
from lambda_gelu.rules import sharding
DTENSOR = "torch.distributed.tensor"
assert DTENSOR not in sys.modules
kind = type(importlib.util.find_spec("torch.distributed").loader)
assert importlib.util.find_spec(DTENSOR) is not None and not sharding._registered  # looking is not importing
sys.meta_path.insert(0, sharding._AfterImport())  # as another package may have one
sys.modules[DTENSOR + "._api"] = None
try:
    import torch.distributed.tensor
except ImportError:  # and failing is not importing
    assert not sharding._registered
del sys.modules[DTENSOR + "._api"]
finders = list(sys.meta_path)
import torch.distributed.tensor
assert sharding._registered
assert sys.meta_path == finders, "another thread that walks through it would skip one"
assert type(torch.distributed.tensor.__loader__) is type(torch.distributed.tensor.__spec__.loader) is kind
assert importlib.util.find_spec(DTENSOR).loader is torch.distributed.tensor.__loader__
registered = torch.distributed.tensor.DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs
strategy = registered[torch.ops.lambda_gelu.lambda_gelu.default]
sharding.register()
assert registered[torch.ops.lambda_gelu.lambda_gelu.default] is strategy
"""

REFUSED_IN_WORDS = """
import warnings
import torch.distributed.tensor.experimental as experimental
def moved(op, extra):
    raise AssertionError
experimental.register_sharding = moved
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import lambda_gelu
assert any("does not take lambda_gelu's sharding rules" in str(warning.message) for warning in caught)
from lambda_gelu.rules import sharding
try:
    sharding.register()
except RuntimeError as error:
    assert "to_local() before lambda_gelu" in str(error)
else:
    raise AssertionError("no error")
"""


@pytest.mark.parametrize("program", [REGISTERED_BY_IMPORT, REFUSED_IN_WORDS], ids=["by import", "refused in words"])
def test_the_sharding_rules_are_registered_when_dtensor_is_imported(program):
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stderr
