"""While λ is frozen the forward uses exactly the scheduled one, whatever else moves parameters."""

import copy
import math

import optimizers
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler, swa_utils

import lambda_gelu
from lambda_gelu import HardnessScheduler, LambdaGELU

LEARNED, HARDENED = 3, 6  # steps
TARGET = 40.0  # above all that is learned here: hardening never lowers λ


pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


class Run:
    """A network that learns λ for LEARNED steps and hardens it for HARDENED, with its own account of the schedule."""

    def __init__(self, make_optimizer):
        self.network = nn.Sequential(
            nn.Linear(4, 6), LambdaGELU(), nn.Linear(6, 6), LambdaGELU(6, temperature=0.2), nn.Linear(6, 1)
        )
        self.sites = [self.network[1], self.network[3]]
        # One group: λ gets the decay and the learning rate of everything else.
        self.optimizer = make_optimizer(self.network.parameters())
        total = LEARNED + HARDENED
        self.scheduler = HardnessScheduler(self.network, total, start=LEARNED / total, target=TARGET)
        self.step_number = 0
        self.learned = None
        self.raw_at_the_switch = None

    def batch(self):
        x = torch.randn(8, 4, generator=torch.Generator("cpu").manual_seed(self.step_number), device="cpu")
        return x.to(self.network[0].weight.device)

    def loss(self, forward=None):
        x = self.batch()
        y = (forward or self.network)(x)
        if self.is_frozen:
            assert torch.equal(y, self.expected(x))
        return (y.float() - x.sum(1, keepdim=True)).square().mean()

    def end_step(self):
        self.scheduler.step()
        self.step_number += 1
        if self.step_number == LEARNED:
            self.learned = [site.hardness.detach().cpu().double() for site in self.sites]
            self.raw_at_the_switch = [site.raw_hardness.detach().clone() for site in self.sites]
        if self.is_frozen:
            for site, hardness in zip(self.sites, self.scheduled(), strict=True):
                assert torch.equal(site.hardness.cpu(), hardness)

    @property
    def is_frozen(self):
        return self.step_number >= LEARNED

    def scheduled(self):
        progress = min(1, (self.step_number - LEARNED) / HARDENED)
        return [(learned + (TARGET - learned) * progress).float() for learned in self.learned]

    def expected(self, x):
        """The network with the scheduled λ as numbers."""
        first, second = (hardness.to(x.device) for hardness in self.scheduled())
        with torch.no_grad():
            x = lambda_gelu.lambda_gelu(self.linear(0, x), first)
            x = lambda_gelu.lambda_gelu(self.linear(2, x), second)
            return self.linear(4, x)

    def linear(self, index, x):
        return F.linear(x, self.network[index].weight, self.network[index].bias)

    def assert_only_raw_hardness_moved(self):
        assert self.step_number == LEARNED + HARDENED
        for site, before in zip(self.sites, self.raw_at_the_switch, strict=True):
            assert site.hardness.tolist() == [TARGET] * site.num_parameters
            assert not torch.equal(site.raw_hardness.detach(), before)  # the optimizer did try: the test can fail


def plain(run):
    for _ in range(LEARNED + HARDENED):
        run.optimizer.zero_grad()
        run.loss().backward()
        run.optimizer.step()
        run.end_step()


@pytest.mark.parametrize(("name", "options"), optimizers.IMPLEMENTATIONS, ids=str)
def test_no_optimizer_moves_a_frozen_hardness(name, options):
    run = Run(lambda parameters: optimizers.OPTIMIZERS[name](parameters, **options))
    plain(run)
    run.assert_only_raw_hardness_moved()


def accumulating(run):
    for _ in range(LEARNED + HARDENED):
        run.optimizer.zero_grad()
        for _ in range(3):
            (run.loss() / 3).backward()
        run.optimizer.step()
        run.end_step()


def stepping_within_an_accumulation(run):
    for _ in range(LEARNED + HARDENED):
        for micro in range(2):
            run.loss().backward()
            if micro == 0:
                run.optimizer.step()  # and the gradients of the learning phase are never zeroed
        run.end_step()


def clipping(run):
    for _ in range(LEARNED + HARDENED):
        run.optimizer.zero_grad()
        run.loss().backward()
        nn.utils.clip_grad_norm_(run.network.parameters(), 0.01)
        nn.utils.clip_grad_value_(run.network.parameters(), 0.01)
        run.optimizer.step()
        run.end_step()


def scaling(run):
    scaler = torch.amp.GradScaler(run.network[0].weight.device.type, init_scale=2.0**8)
    for step in range(LEARNED + HARDENED):
        run.optimizer.zero_grad()
        scale = math.inf if step == LEARNED + 2 else 1
        scaler.scale(run.loss() * scale).backward()
        scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
        scaler.step(run.optimizer)
        scaler.update()
        run.end_step()


def following(make_schedule):
    def train(run):
        schedule = make_schedule(run.optimizer)
        for _ in range(LEARNED + HARDENED):
            run.optimizer.zero_grad()
            run.loss().backward()
            run.optimizer.step()
            schedule.step()
            run.end_step()

    return train


def averaging(use_buffers, multi):
    def train(run):
        average = None
        for _ in range(LEARNED + HARDENED):
            run.optimizer.zero_grad()
            run.loss().backward()
            run.optimizer.step()
            run.end_step()
            if run.is_frozen and average is None:
                average = swa_utils.AveragedModel(run.network, multi_avg_fn=multi, use_buffers=use_buffers)
            if average is not None:
                average.update_parameters(run.network)
                twins = [average.module[1], average.module[3]]
                assert all(twin.is_frozen for twin in twins)
                if not use_buffers:  # else λ is averaged as the weights are
                    assert all(map(torch.equal, [twin.hardness.cpu() for twin in twins], run.scheduled()))
                for twin, index in zip(twins, (1, 3), strict=True):
                    x = torch.randn(3, 6)
                    assert torch.equal(average.module[index](x), lambda_gelu.lambda_gelu(x, twin.hardness))

    return train


def resuming(run):
    """Every step with an optimizer that was loaded, momentum from learning included, and a loaded model."""
    for _ in range(LEARNED + HARDENED):
        run.optimizer.zero_grad()
        run.loss().backward()
        run.optimizer.step()
        run.end_step()
        run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
        run.network.load_state_dict(copy.deepcopy(run.network.state_dict()))
        run.scheduler.load_state_dict(copy.deepcopy(run.scheduler.state_dict()))


def compiling(run):
    compiled = torch.compile(run.network, backend="aot_eager", fullgraph=True)
    for _ in range(LEARNED + HARDENED):
        run.optimizer.zero_grad()
        run.loss(compiled).backward()
        run.optimizer.step()
        run.end_step()


def compiling_the_backward(run):
    for _ in range(LEARNED + HARDENED):
        run.optimizer.zero_grad()
        loss = run.loss()
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True, dynamic=False)):
            loss.backward()
        run.optimizer.step()
        run.end_step()


LOOPS = {
    "gradient accumulation": accumulating,
    "a step within an accumulation that zeroes no gradient": stepping_within_an_accumulation,
    "clipping": clipping,
    "GradScaler": scaling,
    "OneCycleLR": following(lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=LEARNED + HARDENED)),
    "CosineAnnealingWarmRestarts": following(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2)),
    "LinearLR": following(lambda o: lr_scheduler.LinearLR(o, start_factor=0.01, end_factor=1.0, total_iters=4)),
    "EMA": averaging(False, swa_utils.get_ema_multi_avg_fn(0.9)),
    "EMA of buffers too": averaging(True, swa_utils.get_ema_multi_avg_fn(0.9)),
    "SWA": averaging(False, swa_utils.get_swa_multi_avg_fn()),
    "resuming": resuming,
    "torch.compile": compiling,
    "compiled autograd": compiling_the_backward,
}


@pytest.mark.parametrize("name", ["SGD with Nesterov momentum", "AdamW with decay"])
@pytest.mark.parametrize("loop", LOOPS)
def test_no_way_of_training_moves_a_frozen_hardness(loop, name):
    run = Run(optimizers.OPTIMIZERS[name])
    LOOPS[loop](run)
    run.assert_only_raw_hardness_moved()


def test_an_average_of_a_hardness_that_stands_still_is_that_hardness():
    network = nn.Sequential(nn.Linear(3, 3), LambdaGELU(3))
    network[1].freeze_hardness()
    network[1].set_hardness(torch.tensor([0.7, 7.978845596313477, 3.3]))
    for multi in (swa_utils.get_ema_multi_avg_fn(0.9), swa_utils.get_swa_multi_avg_fn()):
        average = swa_utils.AveragedModel(network, multi_avg_fn=multi, use_buffers=True)
        for _ in range(4):
            average.update_parameters(network)
            assert torch.equal(average.module[1].hardness, network[1].hardness)


def test_momentum_left_over_from_learning_leaves_a_frozen_hardness_alone():
    """Of another run, loaded once λ is frozen."""
    source, target = (Run(optimizers.OPTIMIZERS["SGD with momentum"]) for _ in range(2))
    source.loss().backward()
    source.optimizer.step()
    target.network.load_state_dict(source.network.state_dict())
    for site in target.sites:
        site.freeze_hardness()
    before = [site.hardness for site in target.sites]
    target.optimizer.load_state_dict(source.optimizer.state_dict())
    assert all(target.optimizer.state[site.raw_hardness]["momentum_buffer"].any() for site in target.sites)
    raw = [site.raw_hardness.detach().clone() for site in target.sites]
    target.loss().backward()
    target.optimizer.step()
    assert not any(map(torch.equal, raw, [site.raw_hardness.detach() for site in target.sites]))
    assert all(map(torch.equal, before, [site.hardness for site in target.sites]))


@pytest.mark.parametrize("tracked_input", [False, True])
def test_a_frozen_raw_hardness_has_a_gradient_that_is_zero_and_not_none(tracked_input):
    """DistributedDataParallel counts on it."""
    site = LambdaGELU(4)
    site.freeze_hardness()
    x = torch.randn(5, 4, requires_grad=tracked_input)
    (site(x) * torch.tensor([1.0, math.inf, math.nan, 0.0])).sum().backward()
    assert site.raw_hardness.grad.tolist() == [0.0] * 4
    (second,) = torch.autograd.grad(site(x).square().sum(), site.raw_hardness, create_graph=True)
    assert second.tolist() == [0.0] * 4
