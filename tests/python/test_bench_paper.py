"""benchmarks/bench_paper.py for a moment: that every system's step runs, and what its page says of it."""

import dataclasses
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import bench_paper
import paired
import report
from examples.paper.systems import SYSTEMS
from lambda_gelu import LambdaGELU

ROOT = Path(__file__).parents[2]
SMALL = ("adult", "fashion-mnist", "resnet8-cifar10", "gpt4x128-bytes")


@pytest.fixture
def cases(monkeypatch):
    monkeypatch.setattr(bench_paper, "DEVICE", "cpu")
    return {case.system: case for case in bench_paper.CASES}


def row(ratio, reach):
    return {"case": "training step", "system": "a", "title": "A", "batch": 8, "differs": "", "device": "cpu"} | {
        "threads": 1,
        "rounds": 3,
        "ours_us": 1000.0 * ratio,
        "gelu_us": 1000.0,
        "relu_us": 900.0,
        "ours_over_gelu": ratio,
        "quartiles": [ratio, ratio],
        "relu_over_gelu": 0.9,
        "reach": reach,
    }


def test_every_case_is_a_system_and_only_the_small_mlps_may_cost_more_than_a_hundredth(cases):
    assert set(cases) <= set(SYSTEMS)
    assert {name for name, case in cases.items() if case.reach != 1.01} == {"adult", "fashion-mnist"}
    assert {case.reach for case in cases.values()} == {1.01, 1.04}


@pytest.mark.parametrize("name", SMALL)
def test_a_step_trains_the_weights_and_learns_lambda_and_never_hardens_it(cases, monkeypatch, name):
    made = []
    arm = type(bench_paper.UNIFORM)
    network = arm.network
    monkeypatch.setattr(arm, "network", lambda self, system: made.append(network(self, system)) or made[-1])
    step = bench_paper.training_step(bench_paper.UNIFORM, cases[name], 2)
    before = [parameter.detach().clone() for parameter in made[0].parameters()]
    step()
    moved = [not torch.equal(old, new) for old, new in zip(before, made[0].parameters(), strict=True)]
    names = [key for key, _ in made[0].named_parameters()]
    assert all(flag for key, flag in zip(names, moved, strict=True) if key.endswith(("raw_hardness", "weight")))
    assert not any(site.is_frozen for site in made[0].modules() if isinstance(site, LambdaGELU))


def test_a_row_of_a_smaller_batch_says_so_and_compares_all_three(cases):
    case = dataclasses.replace(cases["adult"], small_batch=2)
    found = bench_paper.step_row(case, budget=0.0, keeps_memory=True)
    assert found["differs"] == f"memory kept, batch 2 instead of {SYSTEMS['adult'].batch_size}"
    assert found["rounds"] == 7 and min(found[key] for key in ("ours_us", "gelu_us", "relu_us")) > 0
    assert found["quartiles"][0] <= found["ours_over_gelu"] <= found["quartiles"][1]


def test_calls_in_turn_are_timed_in_turn_every_second_round_backwards():
    order = []
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    times = paired.in_turn(calls, budget=0.0, turn=0.0, rounds=(3, 5))
    assert order == [*"ab", *"ab", *"ab", *"ba", *"ab"]
    assert [len(each) for each in times] == [3, 3]


KEEPING = """
import resource, sys, torch
sys.path.insert(0, "benchmarks")
import paired
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 * 2**20)  # 40 MiB, more than malloc takes from its heap by default
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = [faults() for _ in range(4)]
print(paired.keep_memory(), *given_back, *[faults() for _ in range(16)])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_kept_is_not_taken_from_the_system_again():
    done = subprocess.run([sys.executable, "-c", KEEPING], cwd=ROOT, capture_output=True, text=True, check=True)
    keeps, *faults = done.stdout.split()
    # A few times a small block may lie where the large one would have to grow.
    assert keeps == "True" and sum(map(int, faults[-4:])) < 20 <= sum(map(int, faults[:4]))


@pytest.mark.parametrize(("ratio", "reach", "said"), [(1.009, 1.01, "yes"), (1.011, 1.01, "**no**")])
def test_the_page_says_whether_a_step_is_fast_enough(ratio, reach, said):
    line = report.paper_steps([row(ratio, reach)]).splitlines()[-1]
    assert (
        line == f"| A | batch 8 | {ratio:.2f} | 1.00 | 0.90 | {ratio} ({ratio} to {ratio}) | ≤ 1.01 | {said} | 0.900 |"
    )


def test_the_page_leaves_out_two_cores_where_no_data_were_there():
    two = {"case": "two cores", "title": "A", "alone_s": 1.0, "side_by_side_s": 1.1, "two_threads_s": 0.8}
    assert report.paper_cores([row(1.0, 1.01)]) == ""
    assert "| A | 1.00 | 1.10 | 0.80 | 1.45 |" in report.paper_cores([two | {"speedup_of_two_runs": 1.45}])


def test_an_unknown_part_is_refused_with_those_there_are():
    command = [sys.executable, ROOT / "benchmarks" / "bench_paper.py", "--only", "adul"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "unknown adul: there are cores, adult, fashion-mnist" in refused.stderr
