"""The machine code of the CUDA kernels, which no GPU is needed to read: nothing spills, the inner loops are within
their budgets. And the counter that says so, on code whose counts are known."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lambda_gelu

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import machine_code

LIBRARY = Path(lambda_gelu.cmake_prefix_path).parents[1] / "lib" / "liblambda_gelu.so"

needs_cuobjdump = pytest.mark.skipif(
    machine_code.find_cuobjdump() is None, reason="no cuobjdump: scripts/fetch_cuobjdump.py gets one"
)
needs_nvcc = pytest.mark.skipif(machine_code.find_nvcc() is None, reason="no nvcc")

# --- the kernels -----------------------------------------------------------------------------------------------------

BUDGETED = [
    f"{cut}_{direction}<{storage}, {'true, ' if cut == 'planes' else ''}Dense>"
    for cut in ("span", "planes", "columns")
    for direction in ("forward", "backward")
    for storage in ("Float32", "BFloat16", "Float16")
]


@pytest.fixture(scope="module")
def archs():
    """Those that the build has machine code for."""
    archs = [a.removesuffix("+PTX") for a in lambda_gelu.build_info()["cuda_archs"] if not a.endswith("-virtual")]
    if not archs:
        pytest.skip("this build has no CUDA kernels")
    return [f"sm_{arch}" for arch in archs]


@pytest.fixture(scope="module")
def kernels(archs):
    return machine_code.read_resources(LIBRARY)


@pytest.fixture(scope="module")
def counted(archs):
    if machine_code.BUDGET_ARCHITECTURE not in archs:
        pytest.skip(f"this build has no code for {machine_code.BUDGET_ARCHITECTURE}, which the budgets are for")
    found = machine_code.read(LIBRARY, machine_code.BUDGET_ARCHITECTURE)
    return {kernel.name: machine_code.row(kernel) for kernel in found}


@needs_cuobjdump
def test_every_architecture_has_every_kernel(archs, kernels):
    names = {arch: {kernel.name for kernel in kernels if kernel.architecture == arch} for arch in archs}
    assert {kernel.architecture for kernel in kernels} == set(archs)
    assert all(set(BUDGETED) <= of_one == set.union(*names.values()) for of_one in names.values())


@needs_cuobjdump
def test_no_kernel_spills_or_has_a_stack(kernels):
    assert [machine_code.show(machine_code.row(k)) for k in kernels if k.memory_of_its_own] == []


@needs_cuobjdump
@pytest.mark.parametrize("name", BUDGETED)
def test_inner_loop_is_within_its_budget(counted, name):
    row = counted[name]
    assert row["per_element"] <= row["budget"], machine_code.show(row)
    assert row["calls"] == row["narrow_accesses"] == 0, machine_code.show(row)


@needs_cuobjdump
@pytest.mark.parametrize("name", BUDGETED)
def test_the_loads_of_an_iteration_are_in_flight_together(counted, name):
    """The compiler likes to put off each to its first use, and then a thread waits for one after the other."""
    vectors = 2 if name.startswith("span") else 1
    operands = 2 if "backward" in name else 1
    assert counted[name]["loads_in_flight"] >= vectors * operands, machine_code.show(counted[name])


# --- the counter: a listing ------------------------------------------------------------------------------------------

# A loop whose last block lies behind the code that follows it; an edge loop; a loop without stores.
LISTING = """
arch = sm_90
Resource usage:
 Function _ZN1a5scaleINS_7Float32ENS_12DenseOperandIS1_EEEEvPf:
  REG:40 STACK:0 SHARED:16 LOCAL:0 CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0
	code for sm_90
		Function : _ZN1a5scaleINS_7Float32ENS_12DenseOperandIS1_EEEEvPf
        /*0000*/                   ULDC.64 UR4, c[0x0][0x208] ;         /* 0x00000a00ff017624 */
                                                                        /* 0x000fe400078e00ff */
        /*0010*/                   LDG.E R9, desc[UR4][R2.64] ;
        /*0020*/                   FADD R8, R9, R8 ;
        /*0030*/               @P2 BRA 0x10 ;
        /*0040*/              @!P0 BRA 0x150 ;
        /*0050*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0060*/                   IADD3 R2, P0, R2, 0x10, RZ ;
        /*0070*/                   LDG.E.128.CONSTANT R8, desc[UR4][R2.64] ;
        /*0080*/                   FMUL R4, R4, R0 ;
        /*0090*/                   MUFU.EX2 R5, R5 ;
        /*00a0*/                   F2FP.BF16.F32.PACK_AB R6, R7, R6 ;
        /*00b0*/               @P1 BRA 0xf0 ;
        /*00c0*/                   DADD R6, R6, R6 ;
        /*00d0*/                   HADD2.F32 R7, -RZ, R7.H0_H0 ;
        /*00e0*/                   NOP ;
        /*00f0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0100*/                   STG.E.128 desc[UR4][R2.64+0x10], R8 ;
        /*0110*/                   ISETP.NE.AND P3, PT, R10, RZ, PT ;
        /*0120*/               @P3 BRA 0x1b0 ;
        /*0130*/                   EXIT ;
        /*0140*/                   NOP ;
        /*0150*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0160*/                   STG.E desc[UR4][R2.64], R4 ;
        /*0170*/                   ISETP.NE.AND P3, PT, R10, RZ, PT ;
        /*0180*/                   BRA.U UP0, 0x150 ;
        /*0190*/                   BRA 0x190 ;
        /*01a0*/                   NOP ;
        /*01b0*/                   UIADD3 UR6, UR6, 0x1, URZ ;
        /*01c0*/                   BRA 0x50 ;
        /*01d0*/                   STL.64 [R1+0x8], R4 ;
"""


def loop_of(*instructions):
    lines = [f"        /*{16 * n:04x}*/   {text} ;" for n, text in enumerate(instructions)]
    (kernel,) = machine_code.parse("\n".join(["arch = sm_80", "Function : listed", *lines]))
    return machine_code.inner_loop(kernel.instructions)


@pytest.fixture
def listed():
    (kernel,) = machine_code.parse(LISTING)
    return kernel


def test_reads_a_listing(listed):
    assert (listed.architecture, listed.name) == ("sm_90", "scale<Float32, Dense>")
    assert (listed.registers, listed.stack, listed.shared, listed.local) == (40, 0, 16, 0)
    assert len(listed.instructions) == 30
    assert listed.local_accesses == 1 and listed.memory_of_its_own


def test_counts_the_loop_with_the_wide_stores_and_its_distant_blocks(listed):
    row = machine_code.row(listed)
    assert row["elements"] == 8
    # 0x50 to 0x120 and 0x1b0 to 0x1c0: the longer way, with the block that 0xb0 may jump over
    assert row["per_element"] == 16 / 8
    counts = {name: count for name, count in machine_code.inner_loop(listed.instructions).pipes().items() if count}
    assert counts == {"LSU": 4, "FMA": 1, "MUFU": 1, "CVT": 1, "FP64": 1, "HALF": 1, "ALU": 2, "UNI": 1, "CTL": 4}
    assert row["pipes"]["LSU"] == 4 / 8
    assert row["loads_in_flight"] == 2


def test_an_exclusive_edge_case_in_the_loop_is_not_counted():
    # Either one 16-byte store or, behind it in the listing, four of 4 bytes.
    body = ["@P0 BRA 0x40", "STG.E.128 [R2], R4", "BRA 0x80"]
    loop = loop_of("LDG.E.128 R4, [R2]", *body, *["STG.E [R2], R4"] * 4, "@P1 BRA 0x0", "EXIT")
    assert loop.bytes_stored == 16
    assert [i.opcode for i in loop.instructions] == ["LDG", "BRA", "STG", "BRA", "BRA"]


def test_an_edge_case_behind_the_same_predicate_stores_no_more_elements():
    loop = loop_of("@P0 STG.E.128 [R2], R4", *["@!P0 STG.E [R2], R4"] * 4, "@P1 BRA 0x0", "EXIT")
    assert (loop.bytes_stored, len(loop.instructions)) == (16, 6)


def test_a_join_leads_where_its_own_branch_point_says():
    # Two ways with a barrier register each, the same one; only the second leads by 0x80, and so stores more.
    first = ["@P0 BRA 0x50", "BSSY B0, 0x90", "FADD R0, R0, R0", "STG.E.128 [R2], R4", "BSYNC B0"]
    second = ["BSSY B0, 0x80", "STG.E.128 [R2], R4", "BSYNC B0", "STG.E.128 [R2], R4"]
    loop = loop_of(*first, *second, "@P1 BRA 0x0", "EXIT")
    assert loop.bytes_stored == 32
    assert [i.opcode for i in loop.instructions] == ["BRA", "BSSY", "STG", "BSYNC", "STG", "BRA"]


def test_loads_are_in_flight_until_their_first_use():
    # In the order of execution, the load at the end is used at the beginning.
    early = loop_of("FADD R0, R4, R8", "STG.E.128 [R2], R0", "LDG.E.128 R4, [R2]", "LDG.E.128 R8, [R2]", "@P1 BRA 0x0")
    assert early.loads_in_flight() == 2
    late = loop_of("LDG.E.128 R4, [R2]", "FADD R0, R7, R0", "LDG.E.128 R8, [R2]", "STG.E.128 [R2], R8", "@P1 BRA 0x0")
    assert late.loads_in_flight() == 1


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "blocks"),
    [("sm_90", 32, 0, 8), ("sm_90", 33, 0, 6), ("sm_90", 40, 0, 6), ("sm_90", 64, 0, 4), ("sm_90", 65, 0, 3)]
    + [("sm_90", 16, 46 * 1024, 4), ("sm_80", 16, 46 * 1024, 3), ("sm_120", 16, 0, 6), ("sm_75", 16, 0, None)],
)
def test_blocks_of_a_multiprocessor(arch, registers, shared, blocks):
    kernel = machine_code.Kernel(arch, "", registers=registers, shared=shared)
    assert machine_code.blocks_per_multiprocessor(kernel) == blocks


# --- the counter: kernels compiled here ------------------------------------------------------------------------------

SOURCE = """
struct BFloat16 {};
struct Float32 {};

// 5 multiply-adds and one exponential per element; two vectors of 4 elements an iteration
template <class Storage>
__global__ void known(const float4* __restrict__ x, float4* y, int n, float a) {
  #pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 512) {
    float4 v[2] = {x[i], x[i + 256]};
    #pragma unroll
    for (auto& four : v) {
      #pragma unroll
      for (float* f : {&four.x, &four.y, &four.z, &four.w}) {
        float e;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(*f));
        #pragma unroll
        for (int k = 0; k < 5; ++k) e = __fmaf_rn(e, *f, a);
        *f = e;
      }
    }
    y[i] = v[0];
    y[i + 256] = v[1];
  }
}
template __global__ void known<Float32>(const float4*, float4*, int, float);

// More values alive than the 64 registers that 1024 threads leave to each
template <class Storage>
__global__ void __launch_bounds__(1024) spills(const float* x, float* y) {
  float v[128];
  #pragma unroll
  for (int i = 0; i < 128; ++i) v[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 128; ++i) y[i * 1024 + threadIdx.x] = v[i] * v[127 - i];
}
template __global__ void spills<Float32>(const float*, float*);

// An array that cannot lie in registers
template <class Storage>
__global__ void indexes(const int* at, float* y) {
  float v[16];
  #pragma unroll 1
  for (int i = 0; i < 16; ++i) v[at[i] & 15] = at[i];
  y[threadIdx.x] = v[threadIdx.x & 15];
}
template __global__ void indexes<Float32>(const int*, float*);
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machine_code")
    (folder / "kernels.cu").write_text(SOURCE)
    nvcc = machine_code.find_nvcc()
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    architectures = [a for a in (90, 120) if f"compute_{a}" in known]
    targets = [option for a in architectures for option in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
    command = [nvcc, "-std=c++20", "-O3", "--threads=0", *targets, "-fatbin", "kernels.cu"]
    subprocess.run(command, cwd=folder, check=True)
    kernels = machine_code.read(folder / "kernels.fatbin")
    assert len(kernels) == 3 * len(architectures)
    assert re.search(r"release \d+\.\d+", machine_code.assembler(folder / "kernels.fatbin"))
    return kernels


@needs_cuobjdump
@needs_nvcc
def test_counts_what_was_written(compiled):
    for kernel in (k for k in compiled if k.name == "known<Float32>"):
        row = machine_code.row(kernel)
        loop = machine_code.inner_loop(kernel.instructions)
        operations = [i.opcode for i in loop.instructions]
        assert row["elements"] == 8, row
        assert sum(bool(re.fullmatch("FFMA", o)) for o in operations) + 2 * operations.count("FFMA2") == 40, row
        assert row["pipes"]["MUFU"] == 1 and operations.count("STG") == 2 and operations.count("LDG") == 2, row
        assert row["per_element"] <= 6 + 2, row
        assert not kernel.memory_of_its_own, row


@needs_cuobjdump
@needs_nvcc
def test_sees_spills_and_arrays_in_local_memory(compiled):
    for kernel in (k for k in compiled if k.name != "known<Float32>"):
        assert kernel.stack > 0 and kernel.local_accesses > 0, machine_code.row(kernel)
        assert "LOCAL MEMORY" in machine_code.show(machine_code.row(kernel))
