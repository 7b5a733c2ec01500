"""A frozen hardness under DistributedDataParallel, without find_unused_parameters."""

import pytest
import torch
from torch import distributed, nn
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
