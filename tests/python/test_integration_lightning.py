"""λ-GELU with Lightning."""

import logging
import warnings

import pytest
import torch
from torch import nn

import lambda_gelu
from lambda_gelu import AllowedLoss, Distillation, LambdaGELU, Remaining, Settled, find_sites, to_relu_

lightning = pytest.importorskip("lightning")
from lambda_gelu.integrations.lightning import HardnessCallback, SubstitutionCallback  # noqa: E402

PACKAGES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
for name in PACKAGES.values():
    logging.getLogger(name).setLevel(logging.ERROR)


@pytest.fixture(params=PACKAGES)
def pl(request):
    return pytest.importorskip(PACKAGES[request.param])


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="(pytorch_)?lightning")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec")
        yield


def make_module(pl):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(4, 8), LambdaGELU(init_hardness=1.5), nn.Linear(8, 8), LambdaGELU(8), nn.Linear(8, 1)
            )
            self.seen = []

        def training_step(self, batch, index):
            (x,) = batch
            loss = (self.net(x) - x.sum(1, keepdim=True)).square().mean()
            self.log("loss", loss)
            return loss

        def validation_step(self, batch, index):
            self.log("score", self.net(batch[0]).mean())

        def on_before_optimizer_step(self, optimizer):
            self.seen.append(self.net[1].hardness.item())

        def configure_optimizers(self):
            return torch.optim.AdamW(lambda_gelu.param_groups(self, lr=0.01, weight_decay=0.1))

    torch.manual_seed(0)
    return Module()


def data():
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4)  # 8 batches


def make_logger(pl):
    class Memory(pl.loggers.logger.Logger):
        name, version = "memory", 0

        def __init__(self):
            super().__init__()
            self.metrics = []

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step):
            self.metrics.append((step, metrics))

    return Memory()


def make_trainer(pl, folder, callback, **options):
    return pl.Trainer(
        **{"callbacks": [callback], "max_epochs": 2, "logger": False, "enable_checkpointing": False, **options},
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 16), (3, 6)])
def test_the_schedule_follows_the_optimizer_steps(pl, tmp_path, accumulate, steps):
    module, callback = make_module(pl), HardnessCallback(start=0.5, target=50.0)
    make_trainer(pl, tmp_path, callback, accumulate_grad_batches=accumulate).fit(module, data())
    assert len(module.seen) == steps and callback.scheduler.state_dict()["step"] == steps
    half = steps // 2
    assert all(a != b for a, b in zip(module.seen[:half], module.seen[1:half], strict=False))  # learned
    (learned,) = callback.scheduler.state_dict()["learned_hardness"]["net.1"]
    expected = [learned + (50 - learned) * step / (steps - half) for step in range(steps - half)]
    assert module.seen[half:] == pytest.approx(expected, rel=1e-6)
    assert find_sites(module)["net.1"].hardness.item() == 50.0


def test_with_several_optimizers_a_batch_is_one_step(pl, tmp_path):
    class Manual(type(make_module(pl))):
        automatic_optimization = False

        def configure_optimizers(self):
            halves = (self.net[:2], self.net[2:])
            return [torch.optim.SGD(lambda_gelu.param_groups(half, lr=0.01)) for half in halves]

        def training_step(self, batch, index):
            self.manual_backward(self.net(batch[0]).square().mean())
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    callback = HardnessCallback(start=0.5, target=50.0)
    trainer = make_trainer(pl, tmp_path, callback)
    trainer.fit(Manual(), data())
    assert trainer.global_step == 32  # Lightning counts each
    assert callback.scheduler.state_dict()["step"] == 16 and callback.scheduler.phase == "done"


def test_the_schedule_follows_the_epochs(pl, tmp_path):
    module, callback = make_module(pl), HardnessCallback(interval="epoch", start=0.5, target=50.0)
    make_trainer(pl, tmp_path, callback, max_epochs=4).fit(module, data())
    assert callback.scheduler.state_dict()["step"] == 4
    assert module.seen[24:] == [module.seen[24]] * 8  # λ stands still within an epoch of the hardening
    (learned,) = callback.scheduler.state_dict()["learned_hardness"]["net.1"]
    assert module.seen[16] == pytest.approx(learned) and module.seen[24] == pytest.approx((learned + 50) / 2)
    to_relu_(module)


def test_lambda_is_logged_beside_the_loss(pl, tmp_path):
    module, logger = make_module(pl), make_logger(pl)
    callback = HardnessCallback(start=0.5, target=50.0)
    make_trainer(pl, tmp_path, callback, logger=logger, log_every_n_steps=4).fit(module, data())
    rows = [(step, row) for step, row in logger.metrics if "loss" in row]
    assert [step for step, _ in rows] == [3, 7, 11, 15]
    assert [row["hardness/net.1"] for _, row in rows[:3]] == pytest.approx([module.seen[i] for i in (4, 8, 12)])
    assert rows[-1][1]["hardness_min"] == rows[-1][1]["hardness/net.3"] == pytest.approx(50.0)


def test_lambda_is_not_logged_where_the_trainer_logs_no_steps(pl, tmp_path):
    module, logger = make_module(pl), make_logger(pl)
    make_trainer(pl, tmp_path, HardnessCallback(), logger=logger, log_every_n_steps=0).fit(module, data())
    assert not any("hardness_mean" in row for _, row in logger.metrics)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_fast_dev_run_hardens_in_its_single_step(pl, tmp_path, interval):
    module, callback = make_module(pl), HardnessCallback(interval=interval, target=50.0)
    make_trainer(pl, tmp_path, callback, fast_dev_run=True).fit(module, data(), data())
    assert callback.scheduler.phase == "done" and find_sites(module)["net.1"].hardness.item() == 50.0


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("validate", [False, True])  # where the checkpoint is written
def test_a_resumed_fit_equals_an_unbroken_one(pl, tmp_path, interval, validate):
    options = {"max_epochs": 4, "enable_checkpointing": True}
    plan = {"interval": interval, "start": 0.5, "target": 50.0}

    def run(ckpt_path=None):
        module, callback = make_module(pl), HardnessCallback(**plan)
        checkpoint = pl.callbacks.ModelCheckpoint(
            tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=not validate
        )
        trainer = make_trainer(pl, tmp_path, callback, callbacks=[callback, checkpoint], **options)
        trainer.fit(module, data(), data() if validate else None, ckpt_path=ckpt_path)
        return module, callback

    unbroken, schedule = run()
    for epoch in (0, 1, 2):
        resumed, callback = run(str(tmp_path / f"epoch={epoch}.ckpt"))
        assert resumed.seen == unbroken.seen[8 * (epoch + 1) :]
        assert callback.scheduler.state_dict() == schedule.scheduler.state_dict()
        for ours, theirs in zip(resumed.parameters(), unbroken.parameters(), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_validations_decide_when_hardening_starts_and_a_resumed_fit_decides_the_same(pl, tmp_path, interval):
    plan = {
        "interval": interval,
        "start": Settled(patience=1, hardness_tolerance=1.0, metric_tolerance=10.0, latest=0.75),
        "end": Remaining(0.8),
        "rate": AllowedLoss(10.0, waiting=0.3),
        "target": {"net.1": 20.0, "net.3": [10.0 + channel for channel in range(8)]},
        "metric": "score",
    }

    def run(ckpt_path=None):
        module, callback = make_module(pl), HardnessCallback(**plan)
        checkpoint = pl.callbacks.ModelCheckpoint(tmp_path / interval, filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(
            pl, tmp_path, callback, callbacks=[callback, checkpoint], max_epochs=6, enable_checkpointing=True
        )
        trainer.fit(module, data(), data(), ckpt_path=ckpt_path)
        trainer.validate(module, data(), verbose=False)  # of which the schedule takes no notice
        return find_sites(module), callback.scheduler

    sites, scheduler = run()
    # The second validation finds it settled: after 16 steps, or, before the step of its own epoch, after 1.
    assert scheduler.onset_step == (16 if interval == "step" else 1) and scheduler.phase == "done"
    assert sites["net.3"].hardness.tolist() == plan["target"]["net.3"]
    for epoch in (0, 2):
        resumed, resumed_scheduler = run(str(tmp_path / interval / f"epoch={epoch}.ckpt"))
        assert resumed_scheduler.state_dict() == scheduler.state_dict()
        assert all(torch.equal(resumed[name].hardness, sites[name].hardness) for name in sites)


def test_a_metric_that_is_missing_is_refused(pl, tmp_path):
    with pytest.raises(ValueError, match="Settled and AllowedLoss follow a metric of the validation: name it"):
        HardnessCallback(start=Settled())
    trainer = make_trainer(pl, tmp_path, HardnessCallback(start=Settled(), metric="val_loss"))
    with pytest.raises(ValueError, match=r"metric 'val_loss' was not logged, only .*'score'"):
        trainer.fit(make_module(pl), data(), data())


def test_what_cannot_be_scheduled_or_resumed_is_refused(pl, tmp_path):
    with pytest.raises(ValueError, match="interval must be 'step' or 'epoch', got 'batch'"):
        HardnessCallback(interval="batch")
    endless = make_trainer(pl, tmp_path, HardnessCallback(), max_epochs=-1)
    with pytest.raises(ValueError, match="needs the length of the run: give the Trainer max_steps"):
        endless.fit(make_module(pl), data())
    plain = make_trainer(pl, tmp_path, pl.Callback(), max_epochs=1)
    plain.fit(make_module(pl), data())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="the checkpoint of step 8 has no state of HardnessCallback"):
        make_trainer(pl, tmp_path, HardnessCallback()).fit(make_module(pl), data(), ckpt_path=tmp_path / "plain.ckpt")
    trainer = make_trainer(pl, tmp_path, HardnessCallback(), max_epochs=1)
    trainer.fit(make_module(pl), data())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    for other, words in (
        (HardnessCallback(interval="epoch"), "interval differs"),
        (HardnessCallback(), "total_steps differs: the state has 8, this scheduler 16"),
    ):
        with pytest.raises(ValueError, match=words):
            make_trainer(pl, tmp_path, other).fit(make_module(pl), data(), ckpt_path=tmp_path / "one.ckpt")


# --- the whole protocol ----------------------------------------------------------------------------------------------

PROTOCOL = {"start": 4, "harden": 0.4, "recover": 6, "calibrate": 3, "tolerance_db": 20.0, "cap": 1e4, "module": "net"}


@torch.no_grad()
def mean_error(net):
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(7))
    return (net(x) - x.sum(1, keepdim=True)).square().mean()


def run_protocol(pl, folder, *, ckpt_path=None, max_epochs=8, shares_site=False, **changes):
    options = {
        **PROTOCOL,
        "distillation": Distillation(0.5),
        "activation_l1": 0.01,
        "evaluate": mean_error,
        "higher_is_better": False,
        "metric_name": "error",
        "keep_best": True,
        **changes,
    }
    callback = SubstitutionCallback(**options)

    class Module(type(make_module(pl))):
        def training_step(self, batch, index):
            stages.append(callback.substitution.stage)
            return super().training_step(batch, index) + callback.extra_loss()

        def on_before_optimizer_step(self, optimizer):
            pass

    stages = []
    torch.manual_seed(0)
    module, logger = Module(), make_logger(pl)
    if shares_site:
        module.net[3] = module.net[1]
    checkpoint = pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = make_trainer(
        pl,
        folder,
        callback,
        callbacks=[callback, checkpoint],
        max_epochs=max_epochs,
        enable_checkpointing=True,
        logger=logger,
        num_sanity_val_steps=1,
        limit_train_batches=2,
    )
    trainer.fit(module, data(), data(), ckpt_path=ckpt_path)
    return module, callback, stages, logger, trainer


def test_a_fit_goes_the_whole_way_to_a_relu_network(pl, tmp_path):
    module, callback, stages, logger, trainer = run_protocol(pl, tmp_path)
    assert stages == ["learn"] * 4 + ["harden"] * 6 + ["recover"] * 6
    assert callback.substitution.stage == "done" and callback.extra_loss() == 0.0
    assert not any(isinstance(layer, LambdaGELU) for layer in module.modules())
    assert trainer.optimizers[0].param_groups[1]["params"] == []
    report = callback.substitution.report()
    scores = [metrics for _, metrics in logger.metrics if "error" in metrics]
    assert [score["error"] == score["error_as_relu"] for score in scores] == [False] * 4 + [True] * 4
    assert report.metrics["recovered"] == mean_error(module.net).item() == pytest.approx(scores[-1]["error"])


def test_a_fit_resumed_in_any_stage_equals_an_unbroken_one(pl, tmp_path):
    unbroken, callback, *_ = run_protocol(pl, tmp_path)
    # While calibrating, at the onset, while hardening, right after the swap, in recovery.
    for epoch in (0, 1, 2, 3, 4, 5):
        folder = tmp_path / f"resumed{epoch}"
        resumed, again, *_ = run_protocol(pl, folder, ckpt_path=str(tmp_path / f"epoch={epoch}.ckpt"))
        ours, theirs = resumed.state_dict(), unbroken.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())
        assert again.substitution.report().to_dict() == callback.substitution.report().to_dict()


def test_a_fit_of_a_network_with_a_site_in_two_places_is_resumed_after_the_swap(pl, tmp_path):
    unbroken, *_ = run_protocol(pl, tmp_path, shares_site=True)
    resumed, *_ = run_protocol(pl, tmp_path / "resumed", ckpt_path=str(tmp_path / "epoch=5.ckpt"), shares_site=True)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), unbroken.parameters(), strict=True))


def test_a_fit_without_the_protocol_or_with_another_is_not_resumed(pl, tmp_path):
    run_protocol(pl, tmp_path)
    for changes, words in (
        ({"tolerance_db": 25.0}, r"tolerance_db differs: the state has 20\.0, this protocol 25\.0"),
        ({"max_epochs": 9}, "total_steps differs: the state has 16, this protocol 18"),
    ):
        with pytest.raises(ValueError, match=words):
            run_protocol(pl, tmp_path / "other", ckpt_path=str(tmp_path / "epoch=5.ckpt"), **changes)
    plain = make_trainer(pl, tmp_path, pl.Callback(), max_epochs=1)
    plain.fit(make_module(pl), data())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="the checkpoint has no state of SubstitutionCallback: it was written without"):
        run_protocol(pl, tmp_path / "other", ckpt_path=str(tmp_path / "plain.ckpt"))


def test_a_protocol_takes_options_that_exist_and_a_run_with_an_end(pl, tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'tolerance'"):
        SubstitutionCallback(tolerance=30.0)
    with pytest.raises(TypeError, match="total_steps is the Trainer's"):
        SubstitutionCallback(total_steps=30)
    with pytest.raises(ValueError, match="the protocol needs the length of the run: give the Trainer max_steps"):
        run_protocol(pl, tmp_path, max_epochs=-1)
    module = make_module(pl)
    to_relu_(module)
    with pytest.raises(ValueError, match="has no LambdaGELU"):
        make_trainer(pl, tmp_path, SubstitutionCallback(**PROTOCOL)).fit(module, data())
