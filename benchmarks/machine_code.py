"""Counts the machine instructions of the CUDA kernels, which no GPU is needed for: what an iteration of the inner loop
costs per element, on which pipes, how many loads are in flight, registers, spills.

    python benchmarks/machine_code.py build/editable/src/liblambda_gelu.so [--json] [--dump 'sm_90 span_forward']

The file may be an object, a static or shared library or a cubin. Its inner loop is looked for in the control flow:

- A natural loop with stores to global memory; where there are several, the one that moves most in 16-byte accesses,
  then stores most at all, not counting the loops inside it; then the shortest.
- What an iteration executes is the path through the loop that comes first in the same order; among equals the longest.
  So an edge case beside the fast path is left out, and a slow path that joins it again is counted in full.
- Elements per iteration are the bytes stored on that path, divided by the size of the kernel's storage. Stores of
  another width than most of them are taken for the other side of a predicate.

It does not see how often a loop inside the path runs (counted once) nor what a called function executes (`calls`).
A loop that was split in two counts as the part that stores. How fast any of this runs, only a GPU can tell.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "machine_code.json"
ELEMENT_BYTES = {"Float32": 4, "Float64": 8, "BFloat16": 2, "Float16": 2}

# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    address: int
    guarded: bool  # executed only where a predicate holds
    opcode: str  # LDG
    modifiers: str  # .E.128.CONSTANT
    operands: str

    @property
    def bytes(self) -> int:
        """The width of a load or store."""
        for modifier, width in ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1)):
            if modifier in self.modifiers:
                return width
        return 4


@dataclass
class Kernel:
    architecture: str  # sm_90
    symbol: str
    name: str = ""  # demangled and shortened: span_forward<Float32, Dense>
    instructions: list[Instruction] = field(default_factory=list)
    registers: int = 0
    stack: int = 0
    shared: int = 0
    local: int = 0

    @property
    def element_bytes(self) -> int | None:
        found = re.search(r"<(\w+)", self.name)
        return ELEMENT_BYTES.get(found[1]) if found else None

    @property
    def local_accesses(self) -> int:
        """Instructions that spill, reload or use arrays that did not fit into registers."""
        return sum(i.opcode in ("LDL", "STL") for i in self.instructions)

    @property
    def memory_of_its_own(self) -> bool:
        return bool(self.stack or self.local or self.local_accesses)


_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P\w+\s+)?"
    r"(?P<opcode>[A-Z][A-Z0-9_]*)(?P<modifiers>(?:\.\w+)*)\s*(?P<operands>[^;]*);"
)
_ARCHITECTURE = re.compile(r"^\s*(?:arch = |code for )(sm_\w+)")
_FUNCTION = re.compile(r"^\s*Function(?: : (?P<code>\S+)| (?P<resources>\S+):)\s*$")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def parse(text: str) -> list[Kernel]:
    """The kernels in what `cuobjdump -sass -res-usage` prints."""
    kernels: dict[tuple[str, str], Kernel] = {}
    architecture = ""
    current = None
    for line in text.splitlines():
        if found := _INSTRUCTION.match(line):
            assert current is not None, line
            operands = found["operands"].strip()
            instruction = Instruction(
                int(found["address"], 16), bool(found["guard"]), found["opcode"], found["modifiers"], operands
            )
            current.instructions.append(instruction)
        elif found := _ARCHITECTURE.match(line):
            if not architecture:  # of a cubin, the resources come before it
                kernels = {(found[1], symbol): kernel for (_, symbol), kernel in kernels.items()}
                for kernel in kernels.values():
                    kernel.architecture = found[1]
            architecture = found[1]
        elif found := _FUNCTION.match(line):
            symbol = found["code"] or found["resources"]
            current = kernels.setdefault((architecture, symbol), Kernel(architecture, symbol))
        elif (found := _RESOURCES.search(line)) and current is not None:
            current.registers, current.stack, current.shared, current.local = map(int, found.groups())
    for kernel, name in zip(kernels.values(), _demangle([k.symbol for k in kernels.values()]), strict=True):
        kernel.name = name
    return list(kernels.values())


def _demangle(symbols: list[str]) -> list[str]:
    if not symbols:
        return []
    demangled = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    return [short_name(name) for name in demangled.splitlines()]


def short_name(demangled: str) -> str:
    """`void a::span<a::Float32, a::DenseOperand<a::Float32> >(int)` as `span<Float32, Dense>`."""
    name = demangled.replace("(anonymous namespace)", "")
    name = re.sub(r"\((?:bool|int|unsigned int|long)\)", "", name)  # the type of a template argument
    name = name.split("(")[0].removeprefix("void ")
    name = re.sub(r"(?:\w*::)+", "", name)
    name = re.sub(r"\bTwoInAWord<(\w+)Format>", r"\1", name)
    return re.sub(r"\b(Dense|Strided)Operand<\w+ ?>", r"\1", name).replace(" >", ">")


def find_cuobjdump() -> Path | None:
    """cuobjdump with nvdisasm beside it: of a CUDA toolkit, of this Python environment or of an installed Triton.

    Not those of an older release than nvcc: they list its branches without addresses.
    """
    nvcc = find_nvcc()
    least = release(nvcc) if nvcc else (0, 0)
    places = [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p]
    places += [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places += [Path("/usr/local/cuda/bin"), Path(sys.prefix) / "bin", Path(__file__).parents[1] / ".venv" / "bin"]
    places += [Path(p) / "triton" / "backends" / "nvidia" / "bin" for p in sys.path if p]
    for place in places:
        tools = [shutil.which(tool, path=str(place)) for tool in ("cuobjdump", "nvdisasm")]
        if all(tools) and min(release(tool) for tool in tools if tool) >= least:
            return place / "cuobjdump"
    return None


def release(tool: str | Path) -> tuple[int, int]:
    """Of a program of the CUDA toolkit; (0, 0) where it does not say."""
    said = subprocess.run([str(tool), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def find_nvcc() -> Path | None:
    places = [os.environ.get("PATH", "")]
    places += [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = shutil.which("nvcc", path=os.pathsep.join([*places, "/usr/local/cuda/bin"]))
    return Path(found) if found else None


def cuobjdump(*arguments: str | Path) -> str:
    tool = find_cuobjdump()
    if tool is None:
        raise FileNotFoundError("no cuobjdump with nvdisasm beside it; scripts/fetch_cuobjdump.py gets both")
    environment = os.environ | {"PATH": f"{tool.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [str(a) for a in (tool, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0 and "does not contain device code" not in done.stdout + done.stderr:
        raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr).strip()}")
    return done.stdout


def read(file: str | Path, architecture: str | None = None) -> list[Kernel]:
    """The kernels of an object, library or cubin, or those for one architecture; none where it holds no device code."""
    only = ["-arch", architecture] if architecture else []
    kernels = parse(cuobjdump("-sass", "-res-usage", *only, file))
    for kernel in kernels:
        if not kernel.instructions or not kernel.registers:
            raise RuntimeError(f"cuobjdump shows {kernel.architecture} {kernel.name} of {file} only in part")
    return kernels


def read_resources(file: str | Path) -> list[Kernel]:
    """The same kernels without their instructions: much faster, and a spill has its place on the stack."""
    return parse(cuobjdump("-res-usage", file))


def assembler(file: str | Path) -> str:
    """Who wrote the machine code, as it says itself."""
    versions = set(re.findall(r"Tool Version:\s*(.*\S)", cuobjdump("-elf", file)))
    return "ptxas: " + "; ".join(sorted(versions))


# --- control flow ----------------------------------------------------------------------------------------------------


def _target(instruction: Instruction) -> int | None:
    found = re.search(r"0x([0-9a-f]+)\)?$", instruction.operands)
    return int(found[1], 16) if found else None


def _falls_through(instruction: Instruction) -> bool:
    if instruction.guarded:
        return True
    if instruction.opcode == "BRA":  # also conditional: BRA P1, 0x10 and BRA.U UP0, 0x10 and BRA.DIV UR4, 0x10
        return "," in instruction.operands
    return instruction.opcode not in ("EXIT", "RET", "JMP")


class _Flow:
    """Blocks of a kernel, their successors and natural loops."""

    def __init__(self, instructions: list[Instruction]):
        position = {i.address: n for n, i in enumerate(instructions)}
        joins: dict[str, set[int]] = {}  # barrier register -> addresses where BSYNC may continue
        for i in instructions:
            if i.opcode in ("BRX", "BRXU", "JMX", "JMXU"):
                raise ValueError(f"an indirect branch at {i.address:#x}: where it leads is not in the listing")
            if i.opcode == "BSSY":
                joins.setdefault(i.operands.split(",")[0].strip(), set()).add(_target(i))
        follow: list[set[int]] = []
        for n, i in enumerate(instructions):
            following = {n + 1} if _falls_through(i) and n + 1 < len(instructions) else set()
            if i.opcode in ("BRA", "JMP"):
                following.add(position[_target(i)])
            elif i.opcode == "BSYNC":
                following = {position[target] for target in joins[i.operands.strip()]}
                following |= {n + 1} if i.guarded else set()
            follow.append(following)
        leaders = {0} | {t for n, f in enumerate(follow) for t in f if f != {n + 1}}
        leaders |= {n + 1 for n, f in enumerate(follow) if f != {n + 1} and n + 1 < len(follow)}
        starts = sorted(leaders | {position[target] for targets in joins.values() for target in targets})
        block_at = {start: block for block, start in enumerate(starts)}
        self.blocks = [instructions[a:b] for a, b in itertools.pairwise([*starts, len(instructions)])]
        self.successors = [{block_at[t] for t in follow[end - 1]} for end in [*starts[1:], len(instructions)]]
        self._settle_joins({target: block_at[position[target]] for targets in joins.values() for target in targets})
        self.order = self._reverse_postorder()
        self.dominators = self._dominators()
        self.loops = self._natural_loops()

    def _settle_joins(self, block_at: dict[int, int]) -> None:
        """BSYNC continues where the last BSSY of its barrier register says: leaves it these successors."""
        before: dict[int, set[tuple[str, int]]] = {0: set()}  # block -> BSSYs in force where it starts
        todo = [0]
        while todo:
            block = todo.pop()
            in_force = set(before[block])
            for i in self.blocks[block]:
                if i.opcode == "BSSY":
                    register = i.operands.split(",")[0].strip()
                    in_force = {b for b in in_force if b[0] != register} | {(register, _target(i))}
            last = self.blocks[block][-1]
            if last.opcode == "BSYNC" and not last.guarded:
                register = last.operands.strip()
                self.successors[block] = {block_at[target] for r, target in in_force if r == register}
            for f in self.successors[block]:
                if f not in before or not in_force <= before[f]:
                    before[f] = before.get(f, set()) | in_force
                    todo.append(f)

    def _reverse_postorder(self) -> list[int]:
        order: list[int] = []
        seen = {0}
        stack = [(0, iter(sorted(self.successors[0])))]
        while stack:
            block, rest = stack[-1]
            following = next((s for s in rest if s not in seen), None)
            if following is None:
                order.append(block)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(sorted(self.successors[following]))))
        return order[::-1]

    def _predecessors(self) -> dict[int, list[int]]:
        predecessors: dict[int, list[int]] = {block: [] for block in self.order}
        for block in self.order:
            for following in self.successors[block]:
                predecessors[following].append(block)
        return predecessors

    def _dominators(self) -> dict[int, set[int]]:
        predecessors = self._predecessors()
        dominators = {block: set(self.order) for block in self.order}
        dominators[0] = {0}
        changed = True
        while changed:
            changed = False
            for block in self.order[1:]:
                new = {block} | set.intersection(*(dominators[p] for p in predecessors[block]))
                changed |= new != dominators[block]
                dominators[block] = new
        return dominators

    def _natural_loops(self) -> dict[int, set[int]]:
        """Header -> blocks."""
        predecessors = self._predecessors()
        loops: dict[int, set[int]] = {}
        for latch in self.order:
            for header in self.successors[latch] & self.dominators[latch]:
                body = loops.setdefault(header, {header})
                todo = [latch]
                while todo:
                    block = todo.pop()
                    if block not in body:
                        body.add(block)
                        todo += predecessors[block]
        return loops

    def back_edge(self, block: int, following: int) -> bool:
        return following in self.dominators[block]

    def iteration(self, header: int) -> tuple[tuple[int, int], list[Instruction]]:
        """What an iteration of a loop executes, and (bytes moved in 16-byte accesses, bytes stored) by it."""
        body = self.loops[header]
        inside = {block for h, other in self.loops.items() if h != header and other < body for block in other}

        def weight(block: int) -> tuple[int, int, int]:
            accesses = [] if block in inside else [i for i in self.blocks[block] if i.opcode in ("LDG", "STG")]
            wide = sum(i.bytes for i in accesses if i.bytes == 16)
            return wide, sum(i.bytes for i in accesses if i.opcode == "STG"), len(self.blocks[block])

        best = {header: (weight(header), [header])}
        for block in self.order:
            if block not in best:
                continue
            so_far, path = best[block]
            for following in self.successors[block] & body:
                if self.back_edge(block, following):
                    continue
                total = tuple(a + b for a, b in zip(so_far, weight(following), strict=True))
                if following not in best or total > best[following][0]:
                    best[following] = (total, [*path, following])
        (wide, _, _), path = max(best[block] for block in body & best.keys() if header in self.successors[block])
        stored = dict.fromkeys((1, 2, 4, 8, 16), 0)
        for i in (i for block in path if block not in inside for i in self.blocks[block] if i.opcode == "STG"):
            stored[i.bytes] += i.bytes
        return (wide, max(stored.values())), [i for block in path for i in self.blocks[block]]


# --- counting --------------------------------------------------------------------------------------------------------

# The first that matches. Which unit executes what is commonly understood, not published by the vendor in this form.
PIPES = {
    "CVT": r"F2FP",
    "MUFU": r"MUFU|F2F|F2I|I2F|FRND|POPC|FLO",
    "FP64": r"D(?:ADD|MUL|FMA|SETP|MNMX)",
    "FMA": r"F(?:FMA|MUL|ADD)2?|IMAD|FSWZADD",
    "HALF": r"H(?:FMA|ADD|MUL|SETP|MNMX|SET)2",
    "LSU": r"LD|ST|LDG|STG|LDL|STL|LDS|STS|LDC|ATOM|ATOMG|ATOMS|RED|REDG|SHFL|MEMBAR|CCTL|LDGSTS|LDGDEPBAR",
    "UNI": r"LDCU|R2UR|S2R|CS2R|U[A-Z]\w*|S2UR|CS2UR",
    "CTL": r"BRA|BSSY|BSYNC|EXIT|CALL|RET|WARPSYNC|BREAK|NOP|BAR|DEPBAR|YIELD|BMOV|JMP|ERRBAR|NANOSLEEP",
    "ALU": r".*",  # FMNMX FSEL FSET FSETP ISETP LOP3 SHF PRMT IADD3 LEA SEL MOV VIADD ...
}


def pipe(opcode: str) -> str:
    return next(name for name, pattern in PIPES.items() if re.fullmatch(pattern, opcode))


@dataclass(frozen=True)
class InnerLoop:
    instructions: list[Instruction]
    bytes_stored: int

    def pipes(self) -> dict[str, int]:
        counts = dict.fromkeys(PIPES, 0)
        for instruction in self.instructions:
            counts[pipe(instruction.opcode)] += 1
        return counts

    def calls(self) -> int:
        return sum(i.opcode == "CALL" for i in self.instructions)

    def narrow_accesses(self) -> int:
        """Loads and stores of global memory with less than 16 bytes."""
        return sum(i.opcode in ("LDG", "STG") and i.bytes < 16 for i in self.instructions)

    def loads_in_flight(self) -> int:
        """The most 16-byte loads that have been issued and not yet been waited for, by one thread, where it waits for
        the first of them: where a kernel that memory limits spends its time."""
        length = len(self.instructions)
        names = [set(re.findall(r"\bR\d+", i.operands)) for i in self.instructions]
        spans = []  # of every load in three iterations: where it is issued, where it is first used
        for issued, load in enumerate(self.instructions):
            if load.opcode != "LDG" or load.bytes != 16:
                continue
            first = int(re.match(r"R(\d+)", load.operands)[1])
            registers = {f"R{n}" for n in range(first, first + 4)}
            ahead = range(issued + 1, issued + length)
            used = next((n for n in ahead if registers & names[n % length]), issued + length)
            spans += [(issued + shift, used + shift) for shift in (-length, 0, length)]
        return max((sum(issued < wait <= used for issued, used in spans) for _, wait in spans), default=0)


def inner_loop(instructions: list[Instruction]) -> InnerLoop | None:
    flow = _Flow(instructions)
    candidates = [flow.iteration(header) for header in flow.loops]
    candidates = [(stored, path) for stored, path in candidates if stored[1] > 0]
    if not candidates:
        return None
    (_, stored), path = max(candidates, key=lambda c: (c[0], -len(c[1])))
    return InnerLoop(path, stored)


# Per multiprocessor: threads, bytes of shared memory. Registers: 65,536, in four parts, dealt to warps by 256.
_MULTIPROCESSOR = {80: (2048, 164 * 1024), 90: (2048, 228 * 1024), 100: (2048, 228 * 1024), 120: (1536, 100 * 1024)}
_SHARED_PER_BLOCK = 1024  # what the system takes


def blocks_per_multiprocessor(kernel: Kernel, threads: int = 256) -> int | None:
    """How many blocks of `threads` fit by registers, static shared memory and threads; None for other architectures."""
    limits = _MULTIPROCESSOR.get(int(re.sub(r"\D", "", kernel.architecture)))
    if limits is None:
        return None
    registers_of_a_warp = -(-kernel.registers * 32 // 256) * 256
    by_registers = 4 * (65536 // 4 // registers_of_a_warp) // (threads // 32)
    by_shared = limits[1] // (kernel.shared + _SHARED_PER_BLOCK)
    return min(by_registers, by_shared, limits[0] // threads)


# --- what is asked ---------------------------------------------------------------------------------------------------

# Instructions per element on sm_90 for one lambda: (forward, backward). Dense operands; what strides cost is reported.
_BUDGET = {"Float32": (35, 42), "BFloat16": (20, 27), "Float16": (20, 27)}
_OF_BUDGET = {"span": 1.0, "planes": 1.1, "columns": 1.1}
BUDGET_ARCHITECTURE = "sm_90"


def budget(name: str) -> float | None:
    """The most instructions per element that a kernel may have, where something is asked of it."""
    found = re.fullmatch(r"(?P<cut>\w+)_(?P<direction>forward|backward)<(?P<storage>\w+), (?:true, )?Dense>", name)
    if not found or found["storage"] not in _BUDGET or found["cut"] not in _OF_BUDGET:
        return None
    return round(_BUDGET[found["storage"]][found["direction"] == "backward"] * _OF_BUDGET[found["cut"]], 1)


def row(kernel: Kernel) -> dict:
    """Everything about a kernel, as it goes into benchmarks/results/machine_code.json."""
    result = {
        "arch": kernel.architecture,
        "kernel": kernel.name,
        "registers": kernel.registers,
        "blocks": blocks_per_multiprocessor(kernel),
        "shared": kernel.shared,
        "stack": kernel.stack,
        "local": kernel.local,
        "local_accesses": kernel.local_accesses,
        "code": len(kernel.instructions),
    }
    loop = inner_loop(kernel.instructions) if kernel.instructions and kernel.element_bytes else None
    if loop is None:
        return result
    elements = loop.bytes_stored / kernel.element_bytes
    return result | {
        "elements": round(elements),
        "per_element": round(len(loop.instructions) / elements, 2),
        "budget": budget(kernel.name) if kernel.architecture == BUDGET_ARCHITECTURE else None,
        "pipes": {name: round(count / elements, 2) for name, count in loop.pipes().items()},
        "narrow_accesses": loop.narrow_accesses(),
        "loads_in_flight": loop.loads_in_flight(),
        "calls": loop.calls(),
    }


def show(row: dict) -> str:
    text = f"{row['arch']:7}{row['registers']:4} regs {row['blocks'] or '?'} blocks"
    if row["stack"] or row["local"] or row["local_accesses"]:
        text += f" LOCAL MEMORY (stack {row['stack']}, local {row['local']}, {row['local_accesses']} accesses)"
    if "per_element" in row:
        asked = f" of {row['budget']:g}" if row["budget"] else ""
        pipes = ", ".join(f"{name} {count:g}" for name, count in row["pipes"].items() if count)
        text += f" {row['per_element']:7.2f}{asked} per element ({pipes})"
        text += f", {row['loads_in_flight']} loads in flight, {row['narrow_accesses']} accesses below 16 bytes"
    return f"{text}  {row['kernel']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/machine_code.json")
    parser.add_argument("--dump", metavar="TEXT", help="list the inner loop of kernels whose '<arch> <name>' has this")
    options = parser.parse_args()
    try:
        kernels = read(options.file)
    except FileNotFoundError as error:
        sys.exit(str(error))
    if not kernels:
        print(f"{options.file} holds no device code: nothing to count, nothing written")
        return
    kernels.sort(key=lambda k: (int(re.sub(r"\D", "", k.architecture)), k.name))
    rows = [row(kernel) for kernel in kernels]
    for kernel, counted in zip(kernels, rows, strict=True):
        print(show(counted))
        if options.dump and options.dump in f"{kernel.architecture} {kernel.name}":
            loop = inner_loop(kernel.instructions)
            for i in loop.instructions if loop else []:
                guard = "@ " if i.guarded else "  "
                print(f"    {i.address:5x} {guard}{i.opcode}{i.modifiers} {i.operands}")
    if options.json:
        body = ",\n  ".join(json.dumps(counted) for counted in rows)
        head = f' "command": "make bench",\n "assembler": {json.dumps(assembler(options.file))}'
        RESULT.write_text(f'{{\n{head},\n "rows": [\n  {body}\n ]\n}}\n')
        print("wrote", RESULT)


if __name__ == "__main__":
    main()
