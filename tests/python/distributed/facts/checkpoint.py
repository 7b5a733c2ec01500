"""torch.distributed.checkpoint: what one number of ranks has saved, another resumes, and λ goes on as if unbroken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from group import WORLD_SIZE, Group, fact
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import lambda_gelu
from facts.training import (
    EXAMPLES,
    STEPS,
    SWITCH,
    batches,
    make_model,
    make_optimizer,
    make_scheduler,
    train,
)
from lambda_gelu.integrations.tensor_parallel import HardnessParallel

TEMPERATURE = 0.3  # another one than a new model has: λ follows from s and τ


class Run:
    """A model, its optimizer and scheduler, sharded over the ranks of a group."""

    def __init__(self, group: Group, **options: Any):
        self.group = group
        self.model = fully_shard(make_model(**options), mesh=group.mesh)
        self.optimizer = make_optimizer(self.model)
        self.scheduler = make_scheduler(self.model)

    def train(self, steps: range) -> list[Tensor]:
        trace = []
        for step in steps:
            x, y = (tensor[self.group.part(EXAMPLES)] for tensor in batches()[step])
            self.optimizer.zero_grad()
            (self.model(x) - y).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()
            trace.append(torch.cat(list(self.scheduler.get_last_hardness().values())))
        return trace

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "scheduler": self.scheduler}

    def save(self, path: Path) -> None:
        checkpoint.save(self.state(), checkpoint_id=path, process_group=self.group.process_group)

    def load(self, path: Path) -> None:
        state = self.state()
        checkpoint.load(state, checkpoint_id=path, process_group=self.group.process_group)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )


def group_of(world: Group, size: int) -> Group | None:
    """The first ranks of the world; None on the others."""
    process_group = distributed.new_group(list(range(size)))
    return Group(size, world.rank, process_group, world.folder) if world.rank < size else None


@fact(3)
def a_run_goes_on_at_another_number_of_ranks(world: Group) -> None:
    expected = train(make_model(temperature=TEMPERATURE))
    for before, after in ((2, 1), (1, 3), (3, 2)):
        for saved_at in (1, SWITCH + 1):  # while λ is learned, and while it is hardened
            path = world.folder / f"{before}-{after}-{saved_at}"
            if group := group_of(world, before):
                run = Run(group, temperature=TEMPERATURE)
                run.train(range(saved_at))
                run.save(path)
            distributed.barrier()
            if group := group_of(world, after):
                run = Run(group)  # with a τ of its own, until it loads
                run.load(path)
                sites = lambda_gelu.find_sites(run.model)
                assert sites["1"].temperature == TEMPERATURE
                assert all(site.is_frozen == (saved_at > SWITCH) for site in sites.values())
                trace = torch.stack(run.train(range(saved_at, STEPS)))
                torch.testing.assert_close(trace, expected[saved_at:], rtol=1e-9, atol=0)
                assert (trace[-1] == 6.0).all()
            distributed.barrier()


@fact(2)
def a_tensor_parallel_model_is_loaded_into_a_plain_one_and_back(group: Group) -> None:
    def parallel(mesh: DeviceMesh) -> nn.Module:
        plan = {"2": ColwiseParallel(use_local_output=False), "3": HardnessParallel(), "4": RowwiseParallel()}
        return parallelize_module(make_model(), mesh, plan)

    for frozen in (False, True):
        source = parallel(group.mesh)
        lambda_gelu.init_hardness_(source, "increasing", 1.5, 3.0)
        if frozen:
            for site in lambda_gelu.find_sites(source).values():
                site.freeze_hardness()
                site.set_hardness(torch.linspace(0.5, 2, site.num_parameters))
        expected = {name: site.hardness.detach() for name, site in lambda_gelu.find_sites(source).items()}

        for target, path in ((make_model(), "parallel"), (parallel(group.mesh), "plain")):
            its_folder = group.folder / f"{path}-{frozen}"
            checkpoint.save(get_model_state_dict(source), checkpoint_id=its_folder, process_group=group.process_group)
            state = get_model_state_dict(target)
            checkpoint.load(state, checkpoint_id=its_folder, process_group=group.process_group)
            target.load_state_dict(state)
            for name, site in lambda_gelu.find_sites(target).items():
                assert site.is_frozen == frozen
                assert torch.equal(site.hardness, expected[name])
            source = target


@fact(WORLD_SIZE)  # of which torch makes use, whatever the mesh
def a_whole_state_of_the_first_rank_reaches_all(group: Group) -> None:
    for frozen in (False, True):
        source = fully_shard(make_model(temperature=TEMPERATURE), mesh=group.mesh)
        lambda_gelu.init_hardness_(source, "increasing", 1.5, 3.0)
        expected = {name: site.hardness.detach() for name, site in lambda_gelu.find_sites(source).items()}
        if frozen:
            for site in lambda_gelu.find_sites(source).values():
                site.freeze_hardness()
        whole = get_model_state_dict(source, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        assert bool(whole) == (group.rank == 0)
        plain = make_model()
        if group.rank == 0:
            plain.load_state_dict(whole)
        sharded = fully_shard(make_model(), mesh=group.mesh)
        set_model_state_dict(sharded, whole, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
        for model in (plain, sharded) if group.rank == 0 else (sharded,):
            for name, site in lambda_gelu.find_sites(model).items():
                assert site.temperature == (TEMPERATURE if name == "1" else 0.1)
                assert site.is_frozen == frozen
                if model is plain:
                    assert torch.equal(site.hardness, expected[name])
        for name, site in lambda_gelu.find_sites(sharded).items():
            assert torch.equal(site.hardness, expected[name])
