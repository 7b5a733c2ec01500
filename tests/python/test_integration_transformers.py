"""λ-GELU with transformers: its GELU classes, models built from a config, the Trainer."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lambda_gelu
from lambda_gelu import (
    AllowedLoss,
    Distillation,
    HardnessScheduler,
    LambdaGELU,
    Remaining,
    Settled,
    convert_,
    find_sites,
    relu_substituted,
    to_relu_,
)

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import activations  # noqa: E402

from lambda_gelu.integrations.transformers import (  # noqa: E402
    HardnessCallback,
    HardnessTrainerMixin,
    SubstitutionCallback,
    SubstitutionTrainerMixin,
    converted,
    optimizer_groups,
)

transformers.utils.logging.disable_progress_bar()

# --- GELU classes ----------------------------------------------------------------------------------------------------

ERF, TANH = 0.0, 4.7324e-4
CLASSES = {
    "gelu": ERF,
    "gelu_python": ERF,
    "gelu_new": TANH,
    "gelu_fast": TANH,
    "gelu_accurate": TANH,
    "gelu_pytorch_tanh": TANH,
    "gelu_python_tanh": TANH,
}
X = torch.linspace(-9, 9, 180001, dtype=torch.float64)


def largest_change(before, after):
    return (before(X) - after(X)).abs().max().item()


@pytest.mark.parametrize("name", CLASSES)
def test_every_gelu_of_transformers_is_converted_within_its_stated_error(name):
    model = nn.Sequential(activations.ACT2FN[name])
    original = model[0]
    (site,) = convert_(model, init_hardness=1.001).sites
    change = 0.2935253 * (1 - 1 / 1.001)
    assert site.error == pytest.approx(CLASSES[name] + change, rel=1e-4)
    hardness = model[0].hardness.item()
    assert largest_change(original, lambda x: lambda_gelu.lambda_gelu(x, hardness)) <= site.error
    # The first part of the error is what the class itself is off by, and no more.
    assert largest_change(original, F.gelu) == pytest.approx(CLASSES[name], rel=1e-4, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quick_gelu", "QuickGELUActivation is not GELU: off by 0.02 at x = "),
        ("gelu_10", "ClippedGELUActivation is not GELU: off by "),
    ],
)
def test_what_only_looks_like_gelu_is_left_alone_and_named(name, words):
    model = nn.Sequential(activations.ACT2FN[name], nn.GELU())
    report = convert_(model, example_inputs=torch.randn(3))
    assert type(model[0]) is type(activations.ACT2FN[name])
    assert report.skipped["0"].startswith(words) and report.functional_calls == ()


def test_every_name_with_gelu_in_the_table_of_transformers_is_in_these_tests():
    assert {name for name in activations.ACT2FN if "gelu" in name} == {*CLASSES, "quick_gelu", "gelu_10"}


def test_a_gelu_of_transformers_that_a_forward_takes_from_the_package_is_named():
    class Head(nn.Module):
        def forward(self, x):
            return activations.gelu_new(x)  # tanh, written out: no F.gelu in it

    model = nn.Sequential(Head(), nn.GELU())
    (call,) = convert_(model, example_inputs=torch.randn(3)).functional_calls
    assert (call.name, call.module, call.function) == ("0", "Head", "NewGELUActivation")


def test_the_gelu_in_the_head_of_roberta_is_named():
    config = transformers.RobertaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=32
    )
    report = convert_(transformers.RobertaForMaskedLM(config), example_inputs=torch.tensor([[5, 6, 7]]))
    assert [site.name for site in report.sites] == ["roberta.encoder.layer.0.intermediate.intermediate_act_fn"]
    (call,) = report.functional_calls
    assert (call.name, call.module, call.function, call.calls) == ("lm_head", "RobertaLMHead", "GELUActivation", 1)
    assert call.location.startswith("modeling_roberta.py:")


# --- models ----------------------------------------------------------------------------------------------------------


def make_gpt2(kind=transformers.GPT2LMHeadModel):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, n_positions=16, vocab_size=32, bos_token_id=0, eos_token_id=0
    )
    return kind(config)


def make_bert():
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=32
    )
    return transformers.BertForMaskedLM(config)


def make_vit():
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config)


def make_convnext():
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1], image_size=32, num_labels=3, layer_scale_init_value=1.0
    )
    return transformers.ConvNextForImageClassification(config)


TOKENS = torch.arange(12).reshape(2, 6) % 32
MODELS = {
    "gpt2": (make_gpt2, {"input_ids": TOKENS, "labels": TOKENS}, 2, "NewGELUActivation()"),
    "bert": (make_bert, {"input_ids": TOKENS, "labels": TOKENS}, 3, "GELUActivation()"),
    "vit": (make_vit, {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 2])}, 2, "GELUActivation()"),
    "convnext": (
        make_convnext,
        {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 2])},
        5,
        "GELUActivation()",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_from_a_config_is_converted_trained_and_made_a_relu_network(name):
    torch.manual_seed(0)
    make, inputs, count, replaced = MODELS[name]
    model = make().eval()
    originals = dict(model.named_modules())
    report = convert_(model, example_inputs=inputs)
    # Every layer asked the package for an activation of its own, and no forward calls F.gelu.
    assert [(site.replaced, site.calls, site.shared_with) for site in report.sites] == [(replaced, 1, ())] * count
    assert report.functional_calls == () and report.skipped == {}
    seen = {}
    for site in report.sites:
        model.get_submodule(site.name).register_forward_hook(
            lambda module, args, output, site=site: seen.update({site: (args[0], output)})
        )
    model(**inputs)
    for site in report.sites:
        x, y = seen[site]
        change = (originals[site.name](x) - y).abs().max().item()
        assert 0 < change <= site.error + 1e-6  # and the rounding of float32

    optimizer = torch.optim.AdamW(lambda_gelu.param_groups(model.train(), lr=1e-3))
    hardness = {name: site.hardness.item() for name, site in find_sites(model).items()}
    model(**inputs).loss.backward()
    optimizer.step()
    assert all(site.hardness.item() != hardness[name] for name, site in find_sites(model).items())

    model.eval()
    with relu_substituted(model):
        as_relu = model(**inputs).logits
    assert len(to_relu_(model).sites) == count
    assert torch.equal(model(**inputs).logits, as_relu)


def test_per_channel_with_features_last():
    model = make_gpt2()
    report = convert_(model, per="channel", channel_dim=-1, example_inputs=TOKENS)
    assert [site.num_parameters for site in report.sites] == [64, 64]
    assert model(TOKENS).logits.isfinite().all()


# --- save_pretrained and from_pretrained -----------------------------------------------------------------------------


def lambdas_of(model):
    return {
        name: (site.hardness.item(), site.is_frozen, site.temperature, site.raw_hardness.dtype)
        for name, site in find_sites(model).items()
    }


@pytest.fixture
def lambda_gpt2():
    model = make_gpt2(converted(transformers.GPT2LMHeadModel, temperature=0.3)).eval()
    first, second = find_sites(model).values()
    first.set_hardness(2.0)
    second.freeze_hardness()
    second.set_hardness(5.3)
    return model


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_converted_model_comes_back_from_save_pretrained(lambda_gpt2, tmp_path, dtype):
    lambda_gpt2.save_pretrained(tmp_path)
    # Another τ at first: that of the checkpoint counts.
    kind = converted(transformers.GPT2LMHeadModel)
    model, info = kind.from_pretrained(tmp_path, output_loading_info=True, **({"dtype": dtype} if dtype else {}))
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert lambdas_of(model) == lambdas_of(lambda_gpt2)
    if dtype is None:
        assert torch.equal(model(TOKENS).logits, lambda_gpt2(TOKENS).logits)
    else:
        assert model.lm_head.weight.dtype == dtype


def test_a_plain_checkpoint_loads_into_a_converted_class_with_lambda_at_its_start(tmp_path):
    plain = make_gpt2().eval()
    plain.save_pretrained(tmp_path)
    model = converted(transformers.GPT2LMHeadModel, init_hardness=1.02).from_pretrained(tmp_path)
    assert [site.hardness.item() for site in find_sites(model).values()] == pytest.approx([1.02] * 2)
    assert not any(site.is_frozen for site in find_sites(model).values())
    torch.testing.assert_close(model(TOKENS).logits, plain(TOKENS).logits, rtol=0, atol=0.002)


def test_lambda_per_channel_comes_back_through_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    options = {"per": "channel", "channel_dim": -1, "example_inputs": TOKENS}
    model = make_gpt2().eval()
    convert_(model, **options)
    for site in find_sites(model).values():
        site.set_hardness(torch.linspace(1.5, 3, 64))
    model.save_pretrained(tmp_path)
    loaded = make_gpt2().eval()
    convert_(loaded, **options)
    safetensors.load_model(loaded, tmp_path / "model.safetensors")
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


def test_a_hardened_model_is_shipped_as_a_plain_relu_checkpoint(lambda_gpt2, tmp_path):
    to_relu_(lambda_gpt2)
    lambda_gpt2.config.activation_function = "relu"
    lambda_gpt2.save_pretrained(tmp_path)
    shipped, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(shipped(TOKENS).logits, lambda_gpt2(TOKENS).logits)
    shipped.save_pretrained(tmp_path / "shipped")
    assert json.loads((tmp_path / "shipped" / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]


def test_converted_refuses_what_is_no_model_class_and_what_needs_a_run():
    with pytest.raises(TypeError, match="model_class must be a class of models"):
        converted(transformers.AutoModelForCausalLM)
    with pytest.raises(ValueError, match="load the plain model, then convert_ it"):
        converted(transformers.GPT2LMHeadModel, per="channel")
    with pytest.raises(TypeError, match="unexpected keyword argument 'init_hardnes'"):
        converted(transformers.GPT2LMHeadModel, init_hardnes=2.0)


# --- Trainer ---------------------------------------------------------------------------------------------------------


class HardnessTrainer(HardnessTrainerMixin, transformers.Trainer):
    pass


class Recorder(transformers.TrainerCallback):
    """λ after every optimizer step, and what a reporter is given."""

    def __init__(self):
        self.hardness = []
        self.logged = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.logged.append(dict(logs))

    def on_step_end(self, args, state, control, model, **kwargs):
        self.hardness.append([m.hardness.item() for m in model.modules() if isinstance(m, LambdaGELU)])


def make_trainer(folder, *, callbacks=None, kind=HardnessTrainer, model=None, **options):
    model = make_gpt2() if model is None else model
    if not any(isinstance(module, LambdaGELU) for module in model.modules()):
        convert_(model, init_hardness=1.5)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(32, (64, 6), generator=generator)
    options = {"max_steps": 8, "save_strategy": "no", "logging_steps": 2, "report_to": "none", **options}
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        disable_tqdm=True,
        **{"per_device_train_batch_size": 4, "learning_rate": 0.01, "weight_decay": 0.1, **options},
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    callbacks = [HardnessCallback(start=0.5, target=4.0)] if callbacks is None else callbacks
    return kind(model, args, train_dataset=data, eval_dataset=data[:4], callbacks=[*callbacks, Recorder()])


def recorder_of(trainer):
    (recorder,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, Recorder))
    return recorder


def recorded(trainer):
    return recorder_of(trainer).hardness


def schedule_of(trainer):
    (callback,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, HardnessCallback))
    return callback.scheduler.state_dict()


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 3}, {"bf16": True}])
def test_the_trainer_learns_then_hardens_by_optimizer_steps(tmp_path, options):
    trainer = make_trainer(tmp_path, **options)
    trainer.train()
    hardness = torch.tensor(recorded(trainer))
    assert hardness.shape == (8, 2)  # not one per batch
    assert (hardness[:4].diff(dim=0) != 0).all()  # learned in the first half
    # From the switch after step 4 on, λ is on the line from what was learned to the target.
    learned = torch.tensor(list(schedule_of(trainer)["learned_hardness"].values()))
    expected = learned.T + (4.0 - learned.T) * torch.arange(1, 5)[:, None] / 4
    torch.testing.assert_close(hardness[4:], expected, rtol=1e-6, atol=0)
    assert all(site.is_frozen for site in find_sites(trainer.model).values())


def test_the_optimizer_of_the_trainer_has_lambda_in_its_own_group(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.lr_multiplier = 3.0
    optimizer = trainer.create_optimizer()
    decay, rest, hardness = optimizer.param_groups
    assert (decay["weight_decay"], rest["weight_decay"], hardness["weight_decay"]) == (0.1, 0.0, 0.0)
    assert (decay["lr"], rest["lr"], hardness["lr"]) == (0.01, 0.01, pytest.approx(0.03))
    raw = [site.raw_hardness for site in find_sites(trainer.model).values()]
    assert [p.data_ptr() for p in hardness["params"]] == [p.data_ptr() for p in raw]
    # Everything else is where the Trainer itself would have it.
    plain = transformers.Trainer(trainer.model, trainer.args).create_optimizer()
    for ours, theirs in zip((decay, rest), plain.param_groups, strict=True):
        without = [id(p) for p in theirs["params"] if all(p is not s for s in raw)]
        assert [id(p) for p in ours["params"]] == without
    assert any(p is raw[0] for p in plain.param_groups[0]["params"])  # which gives s weight decay


def test_the_groups_go_with_a_trainer_that_is_not_ours(tmp_path):
    trainer = make_trainer(tmp_path)
    optimizer = torch.optim.SGD(optimizer_groups(trainer.model, trainer.args, lr_multiplier=3.0), lr=1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01, pytest.approx(0.03)]
    rates = []

    class Rates(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
            rates.append([group["lr"] for group in optimizer.param_groups])

    transformers.Trainer(
        trainer.model,
        trainer.args,
        train_dataset=trainer.train_dataset,
        optimizers=(optimizer, None),
        callbacks=[Rates()],
    ).train()
    # The Trainer's linear schedule keeps the multiplier.
    assert torch.tensor(rates) / torch.linspace(1, 1 / 8, 8)[:, None] == pytest.approx(
        torch.tensor([[0.01, 0.01, 0.03]]).expand(8, 3)
    )


def test_an_optimizer_that_makes_its_own_groups_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.optimizer_cls_and_kwargs = (torch.optim.SGD, {"params": list(trainer.model.parameters())})
    with pytest.raises(ValueError, match="SGD makes its own parameter groups"):
        trainer.create_optimizer()


def test_the_trainer_logs_lambda_beside_the_loss(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 4, 6, 8]
    reported = [entry for entry in recorder_of(trainer).logged if "loss" in entry]
    assert reported == [{key: value for key, value in entry.items() if key != "step"} for entry in logs]
    for entry in logs:
        hardness = recorded(trainer)[entry["step"] - 1]
        assert [entry[f"hardness/transformer.h.{i}.mlp.act"] for i in range(2)] == hardness
        assert (entry["hardness_min"], entry["hardness_max"]) == (min(hardness), max(hardness))
        assert entry["hardness_mean"] == pytest.approx(sum(hardness) / 2)
    metrics = trainer.evaluate()
    assert not any("hardness" in key for key in metrics) and "epoch" in metrics
    to_relu_(trainer.model)
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_the_trainer_evaluates_as_if_substituted(tmp_path):
    trainer = make_trainer(tmp_path)
    with relu_substituted(trainer.model):
        as_relu = trainer.evaluate(metric_key_prefix="relu")["relu_loss"]
    assert as_relu != trainer.evaluate()["eval_loss"]
    to_relu_(trainer.model)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(as_relu, rel=1e-6)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A training that has left checkpoints after 2, 4, 6 and 8 steps."""
    trainer = make_trainer(tmp_path_factory.mktemp("unbroken"), save_strategy="steps", save_steps=2)
    trainer.train()
    return trainer


# While learning, at the switch, while hardening.
@pytest.mark.parametrize(("stop", "restore"), [(2, False), (4, False), (6, False), (6, True)])
def test_a_resumed_training_equals_an_unbroken_one(unbroken, tmp_path, stop, restore):
    checkpoint = Path(unbroken.args.output_dir) / f"checkpoint-{stop}"
    saved = json.loads((checkpoint / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["HardnessCallback"]["attributes"]["scheduler_state"]["step"] == stop

    resumed = make_trainer(tmp_path, restore_callback_states_from_checkpoint=restore)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    if not restore:  # which makes a new Recorder
        assert recorded(resumed) == recorded(unbroken)[stop:]
    assert lambdas_of(resumed.model) == lambdas_of(unbroken.model)
    for ours, theirs in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


RULES = {
    "start": Settled(patience=1, hardness_tolerance=1.0, metric_tolerance=1.0, latest=5),
    "end": Remaining(0.8),
    "rate": AllowedLoss(10.0, waiting=0.3),
    "target": {"transformer.h.0.mlp.act": torch.tensor([3.0]), "transformer.h.1.mlp.act": 6.0},
    "metric": "eval_loss",
}


def test_evaluations_decide_when_hardening_starts_and_a_resumed_training_decides_the_same(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path / "whole", callbacks=[HardnessCallback(**RULES)], **options)
    whole.train()
    state = schedule_of(whole)
    assert state["onset"] == 2 and state["pace"]["reference"] is not None
    assert [site.hardness.item() for site in find_sites(whole.model).values()] == [3.0, 6.0]
    for stop, restore in ((1, False), (4, True)):
        callbacks = [HardnessCallback(**RULES)]
        resumed = make_trainer(
            tmp_path / f"{stop}", callbacks=callbacks, restore_callback_states_from_checkpoint=restore, **options
        )
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
        assert schedule_of(resumed) == state
        assert lambdas_of(resumed.model) == lambdas_of(whole.model)


def test_a_rule_needs_the_name_of_a_metric_that_the_evaluation_has(tmp_path):
    for rules in ({"start": Settled()}, {"rate": AllowedLoss(0.1)}):
        with pytest.raises(ValueError, match="Settled and AllowedLoss follow a metric of the validation: name it"):
            HardnessCallback(**rules)
    trainer = make_trainer(tmp_path, callbacks=[HardnessCallback(start=Settled(), metric="eval_bleu")], max_steps=2)
    trainer.train()
    with pytest.warns(UserWarning, match="this evaluation has no 'eval_bleu', only eval_loss"):
        trainer.evaluate()


def test_a_checkpoint_that_no_schedule_wrote_is_refused(tmp_path):
    make_trainer(tmp_path, callbacks=[], save_strategy="steps", save_steps=2).train()
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    with pytest.raises(ValueError, match="the checkpoint of step 2 has no state of HardnessCallback"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_of_another_plan_is_refused(unbroken, tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[HardnessCallback(start=0.5, target=5.0)])
    with pytest.raises(ValueError, match="targets differs"):
        trainer.train(resume_from_checkpoint=str(Path(unbroken.args.output_dir) / "checkpoint-2"))


def test_a_second_training_starts_a_schedule_of_its_own(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    for site in find_sites(trainer.model).values():
        site.unfreeze_hardness()
    trainer.train()
    assert schedule_of(trainer)["step"] == 2


def test_the_callback_takes_what_the_scheduler_takes(tmp_path):
    with pytest.raises(ValueError, match="schedule"):
        make_trainer(tmp_path, callbacks=[HardnessCallback(schedule="sudden")]).train()
    targets = {"transformer.h.0.mlp.act": 3.0, "transformer.h.1.mlp.act": 6.0}
    plan = {"start": 0.25, "target": targets, "schedule": "cosine", "end": 0.75}
    trainer = make_trainer(tmp_path, callbacks=[HardnessCallback(**plan)])
    trainer.train()
    assert [site.hardness.item() for site in find_sites(trainer.model).values()] == [3.0, 6.0]
    expected = HardnessScheduler(make_converted(), 8, **plan).state_dict()
    actual = schedule_of(trainer)
    assert {key: actual[key] for key in ("total_steps", "start", "end", "schedule", "targets")} == {
        key: expected[key] for key in ("total_steps", "start", "end", "schedule", "targets")
    }


def make_converted():
    model = make_gpt2()
    convert_(model)
    return model


# --- the whole protocol ----------------------------------------------------------------------------------------------


class SubstitutionTrainer(SubstitutionTrainerMixin, transformers.Trainer):
    pass


PROTOCOL = {"start": 3, "harden": 0.4, "recover": 4, "calibrate": 2, "tolerance_db": 20.0, "cap": 1000.0}  # of 12 steps
DISTILLED = {**PROTOCOL, "distillation": Distillation(0.5, 2.0), "activation_l1": 0.01}


def make_protocol_trainer(folder, protocol=DISTILLED, **options):
    callback = SubstitutionCallback(**protocol)
    options = {"max_steps": 12, "eval_strategy": "steps", "eval_steps": 3, **options}
    return callback, make_trainer(folder, callbacks=[callback], kind=SubstitutionTrainer, **options)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 3}, {"bf16": True}])
def test_the_trainer_goes_the_whole_way_to_a_relu_network(tmp_path, options):
    callback, trainer = make_protocol_trainer(tmp_path, save_strategy="steps", save_steps=12, **options)
    stages = []

    class Stages(transformers.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            stages.append(callback.substitution.stage)

    trainer.add_callback(Stages())
    trainer.train()
    assert stages == ["learn"] * 2 + ["harden"] * 5 + ["recover"] * 4 + ["done"]
    assert not any(isinstance(module, LambdaGELU) for module in trainer.model.modules())
    *weights, hardness = trainer.optimizer.param_groups
    assert hardness["params"] == []
    assert {p for group in weights for p in group["params"]} == set(trainer.model.parameters())
    report = callback.substitution.report()
    evaluations = {entry["step"]: entry for entry in trainer.state.log_history if "eval_loss" in entry}
    as_relu = {entry["step"]: entry for entry in trainer.state.log_history if "eval_relu_loss" in entry}
    assert report.metrics == {
        "before": evaluations[6]["eval_loss"],
        "swapped": as_relu[6]["eval_relu_loss"],
        "recovered": evaluations[12]["eval_loss"],
    }
    assert report.metrics["before"] != report.metrics["swapped"] and report.metric_name == "eval_loss"
    saved = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-12")
    assert {name for name, _ in saved.named_parameters()} == {name for name, _ in trainer.model.named_parameters()}


def test_recovery_adds_its_loss_once_for_every_optimizer_step(tmp_path):
    def trained(accumulate, protocol):
        model = make_gpt2()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        options = {"gradient_accumulation_steps": accumulate, "per_device_train_batch_size": 8 // accumulate}
        _, trainer = make_protocol_trainer(
            tmp_path, protocol, model=model, optim="sgd", learning_rate=0.1, eval_strategy="no", **options
        )
        trainer.train()
        return trainer.model.state_dict()

    same = {**PROTOCOL, "every": 1}  # which batches every second call has depends on their size
    strong = {**same, "distillation": Distillation(50.0), "activation_l1": 5.0}
    whole, parts, plain = trained(1, strong), trained(2, strong), trained(1, same)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)
    assert any((value - plain[name]).abs().max() > 1e-3 for name, value in whole.items())


@pytest.fixture(scope="module")
def unbroken_protocol(tmp_path_factory):
    """A training that has left a checkpoint after every second step."""
    folder = tmp_path_factory.mktemp("protocol")
    _, trainer = make_protocol_trainer(folder, save_strategy="steps", save_steps=2)
    trainer.train()
    return trainer


# While calibrating, hardening, right after the swap, in recovery.
@pytest.mark.parametrize("stop", [2, 6, 8, 10])
def test_a_protocol_resumed_in_any_stage_equals_an_unbroken_one(unbroken_protocol, tmp_path, stop):
    checkpoint = Path(unbroken_protocol.args.output_dir) / f"checkpoint-{stop}"
    callback, resumed = make_protocol_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert callback.substitution.stage == "done"
    ours, theirs = resumed.model.state_dict(), unbroken_protocol.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_protocol_is_resumed_from_its_last_checkpoint_or_refused(unbroken_protocol, tmp_path):
    _, trainer = make_protocol_trainer(tmp_path, {**DISTILLED, "tolerance_db": 25.0})
    with pytest.raises(ValueError, match=r"tolerance_db differs: the state has 20\.0, this protocol 25\.0"):
        trainer.train(resume_from_checkpoint=str(Path(unbroken_protocol.args.output_dir) / "checkpoint-10"))
    assert len(find_sites(trainer.model)) == 2

    make_trainer(tmp_path, callbacks=[], max_steps=2, save_strategy="steps", save_steps=2).train()
    _, trainer = make_protocol_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint-2 has no substitution\.pt: it was written without"):
        trainer.train(resume_from_checkpoint=True)
    _, trainer = make_protocol_trainer(tmp_path, max_steps=13)
    with pytest.raises(ValueError, match="total_steps differs: the checkpoint has 12, this Trainer 13"):
        trainer.train(resume_from_checkpoint=str(Path(unbroken_protocol.args.output_dir) / "checkpoint-2"))


def test_a_protocol_needs_its_trainer_and_options_that_exist(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'tolerance'"):
        SubstitutionCallback(tolerance=30.0)
    with pytest.raises(TypeError, match="total_steps is the Trainer's"):
        SubstitutionCallback(total_steps=30)
    _, trainer = make_protocol_trainer(tmp_path, {"recover": 20})
    with pytest.raises(ValueError, match="recover must be from 0 to 11 steps, got 20"):
        trainer.train()


def test_the_best_checkpoint_is_chosen_as_a_relu_network(tmp_path):
    protocol = {**PROTOCOL, "keep_best": True, "higher_is_better": False}
    callback, trainer = make_protocol_trainer(
        tmp_path,
        protocol,
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        metric_for_best_model="relu_loss",
        greater_is_better=False,
    )
    trainer.train()
    history = trainer.state.log_history
    scores = {entry["step"]: entry["eval_relu_loss"] for entry in history if "eval_relu_loss" in entry}
    scores |= {entry["step"]: entry["eval_loss"] for entry in history if entry["step"] > 8 and "eval_loss" in entry}
    assert trainer.state.best_metric == min(scores.values())
    best = callback.substitution.best.best
    assert best.score == scores[best.step] and best.step > 3
