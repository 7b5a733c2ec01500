"""A hardness under DistributedDataParallel (without find_unused_parameters) and fully_shard."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import lambda_gelu
from lambda_gelu import HardnessScheduler, LambdaGELU


@pytest.fixture
def process_group(tmp_path):
    if not distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_freezing_in_the_middle_of_a_run_leaves_no_parameter_unused():
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), LambdaGELU(), nn.Linear(8, 1)))
    optimizer = torch.optim.SGD(lambda_gelu.param_groups(model, lr=0.01), momentum=0.9)
    scheduler = HardnessScheduler(model, 6, start=0.5, target=4.0)
    site = model.module[1]
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()  # DDP refuses the next step where a parameter was unused
        assert site.raw_hardness.grad is not None
        assert site.is_frozen == torch.equal(site.raw_hardness.grad, torch.zeros(1))
        optimizer.step()
        scheduler.step()
    assert site.hardness.item() == 4.0


@pytest.mark.usefixtures("process_group")
def test_a_sharded_hardness_is_learned_hardened_and_set():
    def run(shard: bool):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), LambdaGELU(8, init_hardness=1.5), nn.Linear(8, 1))
        if shard:
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
            assert "hardness=" not in repr(model[1])  # it would wait for the other ranks
        optimizer = torch.optim.SGD(lambda_gelu.param_groups(model, lr=0.01), momentum=0.9)
        scheduler = HardnessScheduler(model, 4, start=0.5, target=4.0)
        trace = []
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(5, 4)).square().sum().backward()
            optimizer.step()
            scheduler.step()
            trace.append(scheduler.get_last_hardness()["1"])
        site = model[1]
        site.set_hardness(5.0)
        trace.append(site.hardness)
        site.unfreeze_hardness()
        trace.append(site.hardness.detach())
        site.set_hardness(torch.arange(2.0, 10.0))
        trace.append(site.hardness.detach())
        return torch.stack(trace)

    trace = run(shard=True)
    assert torch.equal(trace, run(shard=False))
    assert not torch.equal(trace[0], trace[1]) and trace[3].tolist() == [4.0] * 8
    torch.testing.assert_close(trace[-1], torch.arange(2.0, 10.0))
