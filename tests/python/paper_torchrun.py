"""What several processes make of runs of examples/paper; started by torchrun. Usage: paper_torchrun.py <folder>"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import paper_standin
import torch
from paper_standin import ARMS, PLAIN, STANDIN, without_seconds

from examples.paper import distributed, run
from examples.paper.training import InterruptedRunError, Run, Trainer

ARM = {arm.name: arm for arm in ARMS}
TRAINED = ("gelu-recovered", "uniform-neurons", "uniform-40db")


def interrupted_and_resumed(folder: Path, ranks: distributed.Ranks, arm: str) -> dict:
    of = Run(STANDIN, ARM[arm], 0, folder / "results", folder / "cache")
    data = STANDIN.load(folder, False)
    torch.manual_seed(ranks.rank)
    trainer = Trainer(of, data, ranks=ranks)
    trainer.stop = lambda: ranks.rank == 1 and trainer.progress.step >= 12  # only one of them is told
    try:
        trainer.train()
    except InterruptedRunError as error:
        stopped = str(error)
    torch.manual_seed(ranks.rank + 5)
    return {"stopped": stopped, "record": without_seconds(Trainer(of, data, ranks=ranks).train())}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found: dict = {"statuses": []}
    with distributed.joined("cpu") as (ranks, _):
        for more in (["--stop-after", "1"], []):
            try:
                cut = ["--systems", PLAIN.name, "--arms", "uniform", "--epochs", "2"]
                run.main(paper_standin.arguments(folder / "command", *cut, *more))
            except SystemExit as end:
                found["statuses"].append(end.code)
        for arm in TRAINED:
            of = Run(PLAIN, ARM[arm], 0, folder / "plain" / "results", folder / "plain" / "cache")
            found[arm] = without_seconds(Trainer(of, PLAIN.load(folder, False), ranks=ranks).train())
            noisy = Run(STANDIN, ARM[arm], 0, folder / "noisy" / "results", folder / "noisy" / "cache")
            found[f"{arm}, noisy"] = without_seconds(Trainer(noisy, STANDIN.load(folder, False), ranks=ranks).train())
            found[f"{arm}, resumed"] = interrupted_and_resumed(folder / "resumed", ranks, arm)
        try:
            Trainer(replace(of, system=replace(PLAIN, batch_size=19)), PLAIN.load(folder, False), ranks=ranks)
        except ValueError as error:
            found["refused"] = str(error)
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with paper_standin.registered():
        main(Path(sys.argv[1]))
