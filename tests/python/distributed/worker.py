"""Runs every fact; started by torchrun with WORLD_SIZE processes. Usage: worker.py <folder> [part of a fact's name]"""

from __future__ import annotations

import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import facts
import torch
from group import FACTS, WORLD_SIZE, Fact, Group
from torch import distributed


def outcome(function: Fact, group: Group) -> str | None:
    """The traceback of a fact that does not hold, else None."""
    torch._dynamo.reset() if "torch._dynamo" in sys.modules else None
    torch.manual_seed(0)
    try:
        function(group)
    except BaseException:
        traceback.print_exc()  # at once: the other ranks may wait for this one, and results never come
        return traceback.format_exc()
    return None


def main(folder: Path, wanted: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    assert distributed.get_world_size() == WORLD_SIZE
    rank = distributed.get_rank()
    groups = {size: distributed.new_group(list(range(size))) for size in range(1, WORLD_SIZE + 1)}
    results: dict[str, str | None] = {}
    for (name, size), function in FACTS.items():
        if not any(part in name for part in wanted.split(",")):
            continue
        mine = None
        if rank < size:
            its_folder = folder / f"{name}-{size}"
            its_folder.mkdir(exist_ok=True)
            mine = outcome(function, Group(size, rank, groups[size], its_folder))
        everyone: list[str | None] = [None] * WORLD_SIZE
        distributed.all_gather_object(everyone, mine)
        failures = [f"rank {rank}:\n{text}" for rank, text in enumerate(everyone) if text]
        results[f"{name}[{size}]"] = "\n".join(failures) or None
        if rank == 0:  # after each fact, in case that a later one hangs
            (folder / "results.json").write_text(json.dumps(results))
    distributed.destroy_process_group()


if __name__ == "__main__":
    assert facts.__all__
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
