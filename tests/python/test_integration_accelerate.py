"""λ-GELU with accelerate, which needs no module of ours."""

import pytest
import torch
from torch import nn

import lambda_gelu
from lambda_gelu import HardnessScheduler, convert_, find_sites, relu_substituted, to_relu_

accelerate = pytest.importorskip("accelerate")
pytest.importorskip("safetensors")

STEPS = 8
DATA = torch.randn(STEPS * 2, 4, generator=torch.Generator().manual_seed(0))


class Run:
    """A training as accelerate's guide has it, with groups for λ and a schedule beside it."""

    def __init__(self, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))
        convert_(model, init_hardness=1.5)
        optimizer = torch.optim.AdamW(lambda_gelu.param_groups(model, lr=0.02, weight_decay=0.1))
        loader = torch.utils.data.DataLoader(DATA, batch_size=2)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (2 * STEPS))
        self.accelerator = accelerate.Accelerator(cpu=True, **options)
        self.model, self.optimizer, self.loader, self.rates = self.accelerator.prepare(model, optimizer, loader, rates)
        steps = STEPS // self.accelerator.gradient_accumulation_steps
        self.schedule = HardnessScheduler(self.accelerator.unwrap_model(self.model), steps, start=0.5, target=20.0)
        self.accelerator.register_for_checkpointing(self.schedule)
        self.hardness = []

    def train(self, first=0, last=STEPS):
        for index, x in enumerate(self.loader):
            if not first <= index < last:
                continue
            with self.accelerator.accumulate(self.model):
                loss = (self.model(x).float() - x.sum(1, keepdim=True)).square().mean()
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.rates.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.schedule.step()
                self.hardness.append([site.hardness.item() for site in find_sites(self.model).values()])
        return self


@pytest.mark.parametrize("options", [{}, {"mixed_precision": "bf16"}, {"gradient_accumulation_steps": 2}])
def test_a_prepared_training_learns_then_hardens(options):
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(**options).train()
    hardness = torch.tensor(run.hardness)
    steps = STEPS // options.get("gradient_accumulation_steps", 1)
    assert hardness.shape == (steps, 2)
    half = steps // 2
    assert (hardness[:half].diff(dim=0) != 0).all()
    learned = torch.tensor(list(run.schedule.state_dict()["learned_hardness"].values())).T
    expected = learned + (20.0 - learned) * torch.arange(1, half + 1)[:, None] / half
    torch.testing.assert_close(hardness[half:], expected, rtol=1e-6, atol=0)
    rates = [group["lr"] for group in run.optimizer.param_groups]
    assert rates[1] == pytest.approx(10 * rates[0]) and rates[0] < 0.02
    with relu_substituted(run.model):
        as_relu = run.model(DATA)
    to_relu_(run.accelerator.unwrap_model(run.model))
    assert torch.equal(run.model(DATA), as_relu)


@pytest.mark.parametrize("stop", [2, 4, 6])  # while learning, at the switch, while hardening
def test_a_run_resumed_from_save_state_equals_an_unbroken_one(tmp_path, stop):
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    unbroken = Run().train()
    broken = Run().train(0, stop)
    broken.accelerator.save_state(tmp_path)
    resumed = Run()
    resumed.accelerator.load_state(tmp_path)
    resumed.train(stop, STEPS)
    assert resumed.hardness == unbroken.hardness[stop:]
    assert resumed.schedule.state_dict() == unbroken.schedule.state_dict()
    for ours, theirs in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
