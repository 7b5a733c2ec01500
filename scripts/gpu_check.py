"""The proof of the CUDA kernels on a GPU: `make gpu-check`, or any of its steps by name.

    python3 scripts/gpu_check.py [build python cpp sanitizer approximations digest]

Without names, all of them; benchmarks/results/gpu_check.json then says what ran on which machine and how it went,
failures included. docs/gpu.md says what each step settles. Logs go to build/gpu. Needs nothing but Python itself: what
needs torch runs in .venv, which the first step makes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
BUILD = ROOT / "build" / "editable"
LOGS = ROOT / "build" / "gpu"
RESULT = ROOT / "benchmarks" / "results" / "gpu_check.json"


class StepError(Exception):
    """The step failed; the text says how."""


class NotRunError(Exception):
    """The step could not be run here; the text says why."""


def gpu_lacks() -> str:
    """Why there is no GPU to check on; empty where there is one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1)"
    count = ctypes.c_int(0)
    if code := driver.cuInit(0):
        return f"the NVIDIA driver finds no device (cuInit: error {code})"
    if driver.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return "the NVIDIA driver counts no device"
    return ""


def run(name: str, *command: object, timeout: float, **environment: str) -> str:
    """Runs a command with its output in a log, and returns that. Raises StepError."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    arguments = [str(part) for part in command]
    with log.open("w") as output:
        output.write(" ".join(arguments) + "\n")
        output.flush()
        try:
            code = subprocess.run(
                arguments,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                timeout=timeout,
                check=False,
                env=os.environ | environment,
            ).returncode
        except subprocess.TimeoutExpired:
            raise StepError(f"not done within {timeout:.0f} s; see {log.relative_to(ROOT)}") from None
        except OSError as error:
            raise StepError(f"{arguments[0]}: {error.strerror}") from None
    text = log.read_text(errors="replace")
    if code:
        print(*text.splitlines()[-30:], sep="\n", file=sys.stderr)
        raise StepError(f"exit code {code}; see {log.relative_to(ROOT)}")
    return text.partition("\n")[2]


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit: from PATH, or from where the toolkit usually lies."""
    homes = [os.environ[key] for key in ("CUDA_HOME", "CUDA_PATH") if key in os.environ]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in [*homes, "/usr/local/cuda"])]
    return shutil.which(name, path=os.pathsep.join(folders))


def nvcc() -> str:
    """That of the build, else the one at hand."""
    cache = BUILD / "CMakeCache.txt"
    named = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.+)$", cache.read_text(), re.MULTILINE) if cache.exists() else None
    if named and Path(named[1]).exists():
        return named[1]
    if found := tool("nvcc"):
        return found
    raise StepError("there is no nvcc, in the build, on PATH or in CUDA_HOME")


def json_in(output: str) -> Any:
    """What a program printed, among warnings."""
    start = re.search(r"^[\[{]", output, re.MULTILINE)
    return json.JSONDecoder().raw_decode(output, start.start() if start else 0)[0]


def counts(report: Path) -> dict:
    """Of a JUnit file: tests, and how many of them failed or were skipped."""
    suites = [suite for suite in ET.parse(report).iter("testsuite")]
    return {
        key: sum(int(suite.get(key) or 0) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    }


def ran(total: dict) -> bool:
    return total["tests"] > total["skipped"]


class Check:
    def __init__(self, *, rehearse: bool, jobs: int) -> None:
        self.rehearse = rehearse  # every step as far as it goes without a GPU
        self.jobs = jobs

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    def build(self) -> dict:
        """The package and the C++ tests, against the torch that is there."""
        run("build", "make", "build", f"JOBS={self.jobs}", timeout=3600)
        code = "import json, lambda_gelu; print(json.dumps(lambda_gelu.build_info()))"
        info = json.loads(run("build_info", PYTHON, "-c", code, timeout=120).splitlines()[-1])
        if not info["cuda_archs"] and not self.rehearse:
            raise StepError("the build has no CUDA kernels; see what it says about nvcc in build/gpu/build.log")
        if not self.rehearse:
            code = "import torch; print(torch.cuda.is_available())"
            if run("torch", PYTHON, "-c", code, timeout=120).split()[-1:] != ["True"]:
                raise StepError(
                    f"torch {info['torch_version']} in .venv sees no CUDA device; to use another one, remove .venv and "
                    "name a Python whose torch has CUDA: PYTHON=<path> make gpu-check"
                )
        return {"cuda_archs": info["cuda_archs"], "torch": info["torch_version"]}

    def python(self) -> dict:
        """The Python tests on CUDA, then what only a GPU can show."""
        select = ["-k", "ulp or layout"] if self.rehearse else []
        parallel = []
        if run("xdist", PYTHON, "-c", FIND_XDIST, timeout=60).strip() == "True":
            parallel = ["-n", str(min(8, self.jobs))]
        shared = ["-m", "pytest", "-q", "--device", self.device, "-p", "no:cacheprovider"]
        reports = LOGS / "python.xml", LOGS / "python_cuda.xml"
        problems = []
        for name, report, arguments in (
            ("python", reports[0], [*parallel, *select, "--ignore", "tests/python/test_cuda.py", "tests/python"]),
            ("python_cuda", reports[1], ["tests/python/test_cuda.py"]),  # alone: it measures memory and time
        ):
            if self.rehearse and name == "python_cuda":
                continue
            report.unlink(missing_ok=True)
            try:
                run(name, PYTHON, *shared, f"--junitxml={report}", *arguments, timeout=420)
            except StepError as problem:
                problems.append(f"{name}: {problem}")
        result = {report.stem: counts(report) for report in reports if report.exists()}
        problems += [f"{name}: no test ran" for name, total in result.items() if not ran(total)]
        if problems:
            raise StepError(f"{'; '.join(problems)} {json.dumps(result)}")
        return result

    def cpp(self) -> dict:
        """The C++ tests, and the CUDA kernels without torch."""
        report = LOGS / "cpp.xml"
        select = ["-R", "Sum"] if self.rehearse else []
        ctest = [tool_of_environment("ctest"), "--test-dir", BUILD, "--output-on-failure", "--no-tests=error"]
        run("cpp", *ctest, "-j", self.jobs, "--output-junit", report, *select, timeout=420)
        total = counts(report)
        if not ran(total):
            raise StepError("no test ran")
        output = run("kernels", self.kernels_program(), timeout=600)
        return total | {"kernels": output.splitlines()[-1]}

    def sanitizer(self) -> dict:
        """compute-sanitizer: accesses, races, barriers and memory nobody wrote; kernels alone, then through torch."""
        program = self.kernels_program()
        sanitizer = tool("compute-sanitizer")
        if sanitizer is None:
            raise NotRunError("compute-sanitizer is not installed")
        if self.rehearse:
            raise NotRunError("a rehearsal has no kernels for it to watch")
        probe = run_anyway(sanitizer, "--tool", "memcheck", program, "10")
        if "not supported" in probe.lower():
            raise NotRunError(f"compute-sanitizer does not work here: {first_complaint(probe)}")
        base = [sanitizer, "--error-exitcode", "9", "--print-limit", "20"]
        done = {}
        # The number is the size in elements up to which cases are run: racecheck slows a kernel down a hundredfold.
        for name, options, largest in (
            ("memcheck", ["--leak-check", "full"], 1_000_000),
            ("initcheck", [], 100_000),
            ("racecheck", ["--racecheck-report", "all"], 20_000),
            ("synccheck", [], 20_000),
        ):
            text = run(f"sanitizer_{name}", *base, "--tool", name, *options, program, largest, timeout=900)
            done[name] = summary_of(text)
        tests = "same_bits_for_any_alignment or beyond_the_ends or strides_of_input"
        text = run(
            "sanitizer_python",
            *base,
            "--tool",
            "memcheck",
            "--report-api-errors",
            "no",
            PYTHON,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--device",
            "cuda",
            "tests/python/test_cuda.py",
            "-k",
            f"({tests}) and (float32 or bfloat16 or chunk)",
            timeout=900,
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",  # every tensor an allocation of its own
        )
        return done | {"memcheck through torch": summary_of(text)}

    def approximations(self) -> dict:
        """The hardware's 2^x and 1/x over all inputs."""
        source, program = ROOT / "tests/gpu/approximations.cu", LOGS / "approximations"
        if self.rehearse:
            run("compile_approximations", "g++", "-std=c++20", "-O2", "-x", "c++", source, "-o", program, timeout=120)
        else:
            flags = ["-std=c++20", "-O3", "-arch=native"]
            run("compile_approximations", nvcc(), *flags, source, "-o", program, timeout=120)
        rows = json_in(run("approximations", program, *(["100003"] if self.rehearse else []), timeout=120))
        for row, bound in zip(rows, (2, 1, 8), strict=True):  # PTX's bounds; what the float64 kernels need
            if not row["max_error"] <= bound:
                raise StepError(f"{row['instruction']} is off by {row['max_error']}, at most {bound} is relied on")
            if row["surprises"]:
                raise StepError(
                    f"{row['instruction']}: special values are not what PTX promises, {row['surprises']} of them"
                )
        return {row.pop("instruction"): row for row in rows}

    def digest(self) -> dict:
        """The bits of dλ, to be compared between models of GPU."""
        return json_in(run("digest", PYTHON, "tests/gpu/digest.py", self.device, timeout=180))

    def kernels_program(self) -> Path:
        """tests/gpu/kernels.cpp, built against the kernels of the build."""
        program, kernels = LOGS / "kernels", BUILD / "src/kernels/liblambda_gelu_kernels.a"
        sources = [ROOT / "tests/gpu/kernels.cpp", ROOT / "tests/cpp/kernels/kernel_testing.cpp"]
        flags = ["-std=c++20", "-O2", *(f"-I{ROOT / folder}" for folder in ("src", "include", "tests/cpp/kernels"))]
        if self.rehearse:
            emulated = [
                BUILD / "tests/cpp/kernels/cuda/liblambda_gelu_cuda_emulated.a",
                BUILD / "tests/cpp/simt/libsimt.a",
            ]
            command = ["g++", *flags, "-DLAMBDA_GELU_ON_HOST", *sources, *emulated, kernels]
        else:
            command = [nvcc(), *flags, *sources, kernels]
        run("compile_kernels", *command, "-lquadmath", "-o", program, timeout=300)
        return program


STEPS = ("build", "python", "cpp", "sanitizer", "approximations", "digest")
FIND_XDIST = "import importlib.util as u; print(u.find_spec('xdist') is not None)"


def tool_of_environment(name: str) -> str:
    """A program of .venv, or of the environment of the Python that runs this, or of PATH."""
    folders = (PYTHON.parent, Path(sys.executable).parent)
    return next((str(folder / name) for folder in folders if (folder / name).exists()), name)


def run_anyway(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, timeout=180)
    return done.stdout + done.stderr


def first_complaint(text: str) -> str:
    return next((line.strip("= ") for line in text.splitlines() if "not supported" in line.lower()), "")


def summary_of(text: str) -> str:
    """compute-sanitizer's last word."""
    lines = [line.strip("= ") for line in text.splitlines() if "SUMMARY" in line]
    if not lines:
        raise StepError("compute-sanitizer gave no summary")
    return "; ".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "steps", nargs="*", metavar="step", help=f"of {', '.join(STEPS)}; default: all, with a result file"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers and tests at a time")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, as far as that goes; no file")
    options = parser.parse_args()
    if unknown := [step for step in options.steps if step not in STEPS]:
        parser.error(f"step must be one of {', '.join(STEPS)}, got {unknown[0]}")
    if not options.rehearse and (lacks := gpu_lacks()):
        print(f"gpu-check: needs an NVIDIA GPU, but {lacks}.", file=sys.stderr)
        return 2

    check = Check(rehearse=options.rehearse, jobs=options.jobs)
    rows = []
    for step in options.steps or STEPS:
        if sys.stdout.isatty():
            print(f"{step:15} ...", end="\r", flush=True)
        start = time.monotonic()
        row: dict = {"step": step}
        try:
            row |= {"status": "passed", "found": getattr(check, step)()}
        except NotRunError as reason:
            row |= {"status": "not run", "why": str(reason)}
        except StepError as reason:
            row |= {"status": "failed", "why": str(reason)}
        row["seconds"] = round(time.monotonic() - start, 1)
        rows.append(row)
        print(f"{step:15} {row['status']:8} {row['seconds']:6.1f} s  {row.get('why', '')}", flush=True)
        if step == "build" and row["status"] == "failed":
            break

    failed = [row["step"] for row in rows if row["status"] == "failed"]
    if not options.steps and not options.rehearse:
        write_result(rows)
    skipped = [row["step"] for row in rows if row["status"] == "not run"]
    verdict = f"failed: {', '.join(failed)}" if failed else "all that ran passed"
    print(f"gpu-check: {verdict}" + (f"; not run: {', '.join(skipped)}" if skipped else ""))
    return 1 if failed else 0


def write_result(rows: list[dict]) -> None:
    try:
        machine = json_in(run("machine", PYTHON, "benchmarks/gpu.py", timeout=120))
    except (StepError, ValueError) as problem:
        machine = {"unknown": str(problem)}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"command": "make gpu-check", "machine": machine, "steps": rows}, indent=1) + "\n")
    print(f"wrote {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
