"""Writes docs/benchmarks.md from benchmarks/results/*.json: no figure in it comes from anywhere else."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"

# What the project asks of the in-cache kernels, in cycles per element; it was set on another processor (Zen 5).
REACH = {
    ("avx512", "float32"): (0.72, 0.96),
    ("avx512", "float64"): (3.2, 3.6),
    ("avx512", "bfloat16"): (0.70, 0.88),
    ("avx512", "float16"): (0.70, 0.88),
    ("avx2", "float32"): (1.75, 2.2),
    ("avx2", "bfloat16"): (1.75, 2.2),
    ("avx2", "float16"): (1.75, 2.2),
}
DTYPES = ("float32", "bfloat16", "float16", "float64")


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def verdict(value: float, reach: float | None, *, at_most: bool = False) -> str:
    if reach is None:
        return ""
    reached = value <= reach if at_most else value >= reach
    return "yes" if reached else "**no**"


# (test, measure): what it says, promised bound
ACCURACY = {
    ("Float32", "y_ulp"): ("float32 y, ULP", 9),
    ("Float32", "d_ulp"): ("float32 D, ULP (0.1 around its zero left out)", 16),
    ("Float32", "d_abs_near_zero"): ("float32 D within 0.1 of its zero, absolute", 1.5e-7),
    ("Float64", "y_ulp"): ("float64 y, ULP", 9),
    ("Float64", "d_ulp"): ("float64 D, ULP", 16),
    ("AllBFloat16", "misrounded_y"): ("bfloat16 y, misrounded of 65,280", 4),
    ("AllBFloat16", "misrounded_d"): ("bfloat16 D, misrounded of 65,280", 4),
    ("AllFloat16", "misrounded_y"): ("float16 y, misrounded of 63,488", 24),
    ("AllFloat16", "misrounded_d"): ("float16 D, misrounded of 63,488", 24),
}


def accuracy(rows: list[dict]) -> str:
    lines = []
    for (test, measure), (text, bound) in ACCURACY.items():
        worst = {
            target: [r["worst"] for r in rows if (r["test"], r["measure"], r["target"]) == (test, measure, target)]
            for target in ("avx512", "avx2", "scalar", "cuda-host")
        }
        lines.append([text] + [f"{max(values):.3g}" if values else "-" for values in worst.values()] + [f"{bound:g}"])
    header = ["worst case", "AVX-512", "AVX2", "scalar", "CUDA, compiled for the host", "tested to be at most"]
    return table(header, lines)


def in_cache(rows: list[dict]) -> str:
    found = {(r["target"], r["dtype"], r["pass"]): r["cycles_per_element"] for r in rows if "cycles_per_element" in r}
    lines = []
    for target in ("avx512", "avx2"):
        for dtype in DTYPES:
            for index, direction in enumerate(("forward", "backward")):
                value = found.get((target, dtype, direction))
                if value is None:
                    continue
                reach = REACH.get((target, dtype), (None, None))[index]
                asked = "-" if reach is None else f"≤ {reach}"
                lines.append([target, dtype, direction, f"{value:.2f}", asked, verdict(value, reach, at_most=True)])
    return table(["instructions", "dtype", "pass", "cycles per element", "asked", "reached"], lines)


def in_memory(rows: list[dict]) -> str:
    lines = [
        [r["target"], r["dtype"], r["pass"], str(r["threads"]), f"{r['GB_per_s']:.1f}", f"{r['copy_GB_per_s']:.1f}"]
        + [f"{r['in_cache_GB_per_s']:.1f}", f"{r['of_limit']:.2f}", verdict(r["of_limit"], 0.95)]
        for r in rows
        if "of_limit" in r
    ]
    header = ["instructions", "dtype", "pass", "threads", "GB/s", "copy GB/s", "threads × in cache GB/s"]
    return table([*header, "of the smaller", "≥ 0.95"], lines)


def per_channel(rows: list[dict]) -> str:
    layouts = sorted({r["case"] for r in rows if "of_one_lambda" in r}, key=lambda c: (c[0], int(c.split(":")[1])))
    found = {(r["target"], r["dtype"], r["pass"], r["case"]): r["of_one_lambda"] for r in rows if "of_one_lambda" in r}
    lines = [
        [target, dtype, direction] + [f"{found[target, dtype, direction, layout]:.2f}" for layout in layouts]
        for target in ("avx512", "avx2")
        for dtype in DTYPES
        for direction in ("forward", "backward")
        if (target, dtype, direction, layouts[0]) in found
    ]
    return table(["instructions", "dtype", "pass", *layouts], lines)


def arch_number(row: dict) -> int:
    return int(row["arch"].removeprefix("sm_"))


def inner_loops(rows: list[dict]) -> str:
    """Every kernel with an inner loop: in full for the architecture that the budgets are for, totals for the others."""
    others = sorted({arch_number(r) for r in rows} - {90})
    totals = {(arch_number(r), r["kernel"]): f"{r['per_element']:.1f}" for r in rows if "per_element" in r}
    pipes = ("FMA", "ALU", "MUFU", "CVT", "HALF", "FP64", "LSU", "UNI", "CTL")
    lines = [
        [f"`{r['kernel']}`", f"**{r['per_element']:.1f}**", f"≤ {r['budget']:g}" if r["budget"] else "-"]
        + [verdict(r["per_element"], r["budget"], at_most=True)]
        + [f"{r['pipes'][pipe]:.1f}" if r["pipes"][pipe] else "" for pipe in pipes]
        + [str(r["registers"]), str(r["blocks"]), str(r["loads_in_flight"])]
        + [totals.get((arch, r["kernel"]), "-") for arch in others]
        for r in sorted(rows, key=lambda r: ("Strided" in r["kernel"], r["kernel"]))
        if arch_number(r) == 90 and "per_element" in r
    ]
    header = ["kernel", "sm_90", "asked", "reached", *pipes, "registers", "blocks", "loads"]
    return table([*header, *(f"sm_{arch}" for arch in others)], lines)


def small_planes(rows: list[dict]) -> str:
    """What a plane of 49 costs: it is asked to stay within 40."""
    cost = {r["kernel"]: r["per_element"] for r in rows if arch_number(r) == 90 and "per_element" in r}
    figures = ", ".join(
        f"{name} {cost[f'columns_forward<{storage}, Dense>']:.1f} and {cost[f'columns_backward<{storage}, Dense>']:.1f}"
        for name, storage in (("float32", "Float32"), ("bfloat16", "BFloat16"), ("float16", "Float16"))
    )
    return (
        "Planes of fewer than 64 elements, 49 for example, run the `columns` kernels: forward and backward "
        f"{figures} instructions per element, where 40 are asked for planes of 49. `planes` kernels with `false` "
        "choose between the constants of two planes for every element."
    )


def spills(rows: list[dict]) -> str:
    bad = [f"{r['arch']} `{r['kernel']}`" for r in rows if r["stack"] or r["local"] or r["local_accesses"]]
    archs = ", ".join(f"sm_{arch}" for arch in sorted({arch_number(r) for r in rows}))
    where = ", ".join(bad) if bad else "none"
    return f"{len(rows)} kernels for {archs}. With spills, a stack or local memory (asked: none): {where}."


def speedups(rows: list[dict]) -> str:
    lines = []
    for r in rows:
        if "speedup" not in r:
            continue
        labels = [str(r[key]) for key in ("dtype", "shape", "form") if key in r]
        labels += [f"width {r['width']}, batch {r['batch']}"] if "width" in r else []
        reach = r["reach"]
        lines.append(
            [r["case"], r["against"], " ".join(labels), str(r["threads"]), f"{r['elements']:,}"]
            + [f"{r['ours_ns_per_element']:.3f}", f"{r['other_ns_per_element']:.3f}", f"{r['speedup']:.2f}"]
            + ["-" if reach is None else f"≥ {reach:g}", verdict(r["speedup"], reach)]
        )
    header = ["case", "against", "what", "threads", "elements", "ours, ns/element", "other, ns/element", "other / ours"]
    return table([*header, "asked", "reached"], lines)


def binary_size(count: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B"


def on_gpu(rows: list[dict]) -> str:
    lines = []
    for r in rows:
        if "speedup" not in r:
            continue
        low, high = r["quartiles"]
        lines.append(
            [r["case"], r.get("layout", ""), r["dtype"], binary_size(r["bytes"]), r["against"], f"{r['ours_us']:.1f}"]
            + [f"{r['GB_per_s']:.0f}", f"{r['speedup']:.3f} ({low:.3f} to {high:.3f})"]
            + ["-" if r["reach"] is None else f"≥ {r['reach']:g}", verdict(r["speedup"], r["reach"])]
        )
    header = ["case", "layout", "dtype", "tensor", "against", "ours, µs", "GB/s", "other / ours (quartiles)"]
    return table([*header, "asked", "reached"], lines)


def gpu_memory(rows: list[dict]) -> str:
    lines = []
    for r in rows:
        if "ours_bytes" in r:
            more = r["ours_bytes"] - r["other_bytes"]
            reach = r.get("reach_bytes")
            asked = [f"< {reach:,}", verdict(more, reach - 1, at_most=True)] if reach else ["-", ""]
            lines.append([r["case"], r["dtype"], binary_size(r["bytes"]), f"{more:+,}", *asked])
    return table(["case", "dtype", "tensor", "bytes beyond F.gelu's", "asked", "reached"], lines)


def cuda() -> str:
    """The section on a GPU, where one has been measured."""
    if not (RESULTS / "cuda.json").exists():
        return ""
    result = load("cuda")
    return f"""## On a GPU

`make gpu-bench`; [gpu.md](gpu.md) says how it is measured. {machine(result["machine"])}.

{on_gpu(result["rows"])}

{gpu_memory(result["rows"])}

"""


def compiled_blocks(rows: list[dict]) -> str:
    lines = [
        [r["case"], r["pass"], r["dtype"], f"{r['elements']:,}", f"{r['opaque_us']:.1f}", f"{r['fuse_us']:.1f}"]
        + [f"{r['gelu_us']:.1f}", r["auto"], f"{r['auto_over_better']:.2f}"]
        + [verdict(r["auto_over_better"], 1.03, at_most=True), f"{r['auto_over_gelu']:.2f}"]
        for r in rows
        if "auto_over_better" in r
    ]
    header = ["block", "pass", "dtype", "elements", "opaque, µs", "fuse, µs", "nn.GELU, µs", "auto takes"]
    return table([*header, "auto / better mode", "≤ 1.03", "auto / nn.GELU"], lines)


def compiled_networks(rows: list[dict]) -> str:
    lines = [
        [r["case"], "compiled" if r["compiled"] else "eager", f"{r['ours_us']:.0f}", f"{r['gelu_us']:.0f}"]
        + [f"{r['ours_over_gelu']:.3f}", verdict(r["ours_over_gelu"], r["reach"], at_most=True)]
        for r in rows
        if "ours_over_gelu" in r
    ]
    header = ["step", "run", "LambdaGELU, µs", "nn.GELU, µs", "LambdaGELU / nn.GELU"]
    return table([*header, "≤ 1.01"], lines)


def compiled() -> str:
    """The section on torch.compile, where it has been measured."""
    if not (RESULTS / "compile.json").exists():
        return ""
    result = load("compile")
    rows = result["rows"]
    threads = next(r["threads"] for r in rows if "threads" in r)
    calls = [[r["form"], str(r["ours_ns"]), str(r["gelu_ns"])] for r in rows if r["case"] == "eager call"]
    imports = next(r for r in rows if "ms" in r)
    return f"""## Under torch.compile

`benchmarks/bench_compile.py`; [compile.md](compile.md) says what the modes are. {threads} threads, on
{result["machine"]["device"]}; a forward that keeps what backward needs, and "training": that and the gradients of x, λ
and bias.

{compiled_blocks(rows)}

A training step with SGD and a learned λ per site, beside the same network with nn.GELU:

{compiled_networks(rows)}

One eager call on 16 elements without gradients, in ns, beside `F.gelu`:

{table(["call", "ours", "F.gelu"], calls)}

`import lambda_gelu` takes {imports["ms"]:.0f} ms on top of `import torch` (asked: at most {imports["reach"]}).

"""


def observed() -> str:
    """The section on observing pre-activations, where it has been measured."""
    if not (RESULTS / "observe.json").exists():
        return ""
    result = load("observe")
    steps, alone = [], []
    for r in result["rows"]:
        if "overhead" in r:
            per = r["per"] if r["every"] == 1 else f"{r['per']}, every {r['every']}th call"
            steps.append(
                [r["case"], r["dtype"], "compiled" if r["compiled"] else "eager", per, f"{r['plain_us']:.0f}"]
                + [f"{r['observed_us']:.0f}", f"{100 * r['overhead']:.1f} %"]
                + [verdict(r["overhead"], r["reach"], at_most=True), f"{100 * r['overhead_when_ended']:.1f} %"]
            )
        else:
            alone.append(
                [r["dtype"], f"{r['elements']:,}", r["per"], f"{r['ours_ns_per_element']:.3f}"]
                + [f"{r['forward_ns_per_element']:.3f}", f"{r['ours_over_forward']:.2f}"]
            )
    threads = next(r["threads"] for r in result["rows"] if "threads" in r)
    step_header = [
        "step",
        "dtype",
        "run",
        "per",
        "plain, µs",
        "observed, µs",
        "overhead",
        "≤ 5 %",
        "overhead afterwards",
    ]
    return f"""## Observing pre-activations

`benchmarks/bench_observe.py`, {threads} threads. A training step inside `lambda_gelu.observe` beside the same step
outside, and beside it again when the observation has ended:

{table(step_header, steps)}

`observe_` alone, beside the forward of the activation on the same input, ns per element:

{table(["dtype", "elements", "per", "observe_", "forward", "observe_ / forward"], alone)}

"""


def paper_steps(rows: list[dict]) -> str:
    lines = []
    for r in rows:
        if r["case"] != "training step":
            continue
        low, high = r["quartiles"]
        lines.append(
            [r["title"], r["differs"] or f"batch {r['batch']}"]
            + [f"{r[key] / 1e3:.2f}" for key in ("ours_us", "gelu_us", "relu_us")]
            + [f"{r['ours_over_gelu']:.3f} ({low:.3f} to {high:.3f})", f"≤ {r['reach']:g}"]
            + [verdict(r["ours_over_gelu"], r["reach"], at_most=True), f"{r['relu_over_gelu']:.3f}"]
        )
    header = ["system", "step", "LambdaGELU, ms", "nn.GELU, ms", "nn.ReLU, ms", "LambdaGELU / nn.GELU (quartiles)"]
    return table([*header, "asked", "reached", "nn.ReLU / nn.GELU"], lines)


def paper_cores(rows: list[dict]) -> str:
    """Which of the two keeps two cores busy better, where it has been measured."""
    lines = [
        [r["title"], f"{r['alone_s']:.2f}", f"{r['side_by_side_s']:.2f}", f"{r['two_threads_s']:.2f}"]
        + [f"{r['speedup_of_two_runs']:.2f}"]
        for r in rows
        if r["case"] == "two cores"
    ]
    if not lines:
        return ""
    header = ["system", "one run alone, one thread", "each of two runs, one thread", "one run, two threads"]
    return f"""Seconds of an epoch with all that the runner notes: of one run alone, of two runs side by side, each a
process with one thread, and of one run on two threads. The last column: epochs of the two runs in the time of one epoch
on two threads.

{table([*header, "two runs / two threads"], lines)}

"""


def paper() -> str:
    """The section on the paper's experiments, where it has been measured."""
    if not (RESULTS / "paper.json").exists():
        return ""
    result = load("paper")
    rows = result["rows"]
    step = next(r for r in rows if "threads" in r)
    threads = "one thread" if step["threads"] == 1 else f"{step['threads']} threads"
    return f"""## The paper's systems

`benchmarks/bench_paper.py`, on {step["device"]}, {threads}, random inputs. A training step of the systems of
`examples/paper` in the phase where λ is learned: forward, loss, backward, optimizer and `scheduler.step()`; beside it
the same with nn.GELU and with nn.ReLU, which have no λ to learn and none to schedule. A smaller batch than the system's
is told. "Memory kept": the C library keeps what is freed; else it gives gradients of large layers back to the system in
every step and takes them again page by page, more or fewer of them for one network than for another.

{paper_steps(rows)}

{paper_cores(rows)}"""


def machine(description: dict) -> str:
    keep = ("gpu", "compute_capability", "multiprocessors", "gpu_memory_bytes", "l2_bytes", "driver", "torch_cuda")
    keep += ("cpu", "family_model", "cores", "caches", "clock_GHz", "last_level_cache_bytes", "torch", "date", "commit")
    parts = []
    for key in keep:
        if key in description:
            value = description[key]
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            parts.append(f"{key}: {text}")
    return "; ".join(parts)


def main() -> None:
    kernels, op, machine_code = load("kernels"), load("op"), load("machine_code")
    measured = {key: kernels["machine"][key] for key in ("clock_GHz", "last_level_cache_bytes")}
    memory = [[r["form"], f"{r['MiB']:.0f}"] for r in op["rows"] if "MiB" in r]
    page = f"""# Benchmarks

Written by `benchmarks/report.py` from `benchmarks/results/*.json`; `make bench` measures again and rewrites both. Every
figure is a ratio to something measured in the same run, or stands beside one. **reached** compares with what the
project asks of itself; a missed figure stays here until it is met.

Machine: {machine(op["machine"] | measured)}. A shared virtual machine, so the kernels' figures are the best of many
calls and the op's are medians of pairs.

What limits: the figures asked for the kernels in cache were set on AMD Zen 5, with AVX-512 units of 512 bits. Zen 4
(family 25) runs a 512-bit instruction in two halves: one multiply-add or table look-up a cycle, a division in six. The
ratios to ATen and to compiled code were set there too.

## Accuracy

Worst over λ in {{1, 1.3, 1.693, 3, 8, 80, 100}}; D = dy/dx. float32: 100,000 points per λ against long double; float64:
6,000 against 113-bit erfc; 16-bit types: every finite input, and what is misrounded is off by one unit.

{accuracy(load("accuracy")["rows"])}

## Kernels in cache, one thread

{in_cache(kernels["rows"])}

## Kernels, 64M elements

Against the smaller of a non-temporal copy of as many bytes (one read and one write; two reads and one write) and the
number of threads times the speed in cache.

{in_memory(kernels["rows"])}

## Kernels, one λ per channel

Speed relative to one λ for the whole tensor, 2M elements, one thread (asked: ≥ 0.8).

{per_channel(kernels["rows"])}

## CUDA machine code

What the compiler made of the CUDA kernels, counted in the binary. No GPU is needed for it, and it is no measure of
speed: instructions of the inner loop per element, by the unit that executes them; registers; blocks of 256 threads that
fit on a multiprocessor; and the most 16-byte loads that a thread has under way where it waits for one. `Dense` operands
are contiguous and aligned. `Strided` ones are anything else, counted along the way that moves most. `true`: no vector
of 16 bytes reaches from one plane into the next.

By {machine_code["assembler"]}. {spills(machine_code["rows"])}

{inner_loops(machine_code["rows"])}

{small_planes(machine_code["rows"])}

{cuda()}{compiled()}{observed()}{paper()}## The op, and what users would call otherwise

Backward rows include dλ for ours; `F.gelu` and ATen have none, and lose the negative tail. At 64M elements in fresh
memory the page faults cost several times the arithmetic; `x.clone()` shows what they alone cost.

{speedups(op["rows"])}

Peak of resident memory above the inputs, forward + backward of 2^24 float32 elements between two multiplications, MiB:

{table(["form", "MiB"], memory)}
"""
    PAGE.write_text(page)
    print("wrote", PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
