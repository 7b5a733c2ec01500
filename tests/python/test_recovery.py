"""After the swap: the optimizer's state, distillation, the rising L1."""

import copy
import math

import mpmath
import pytest
import torch
from optimizers import IMPLEMENTATIONS, OPTIMIZERS
from torch import nn
from torch.utils.checkpoint import checkpoint

from lambda_gelu import LambdaGELU, param_groups, relu_substituted, to_relu_
from lambda_gelu.recovery import ActivationL1, Distillation, Teacher, distillation_loss, keep_optimizer_

# --- the optimizer ---------------------------------------------------------------------------------------------------


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), LambdaGELU(), nn.Linear(8, 8), LambdaGELU(8), nn.Linear(8, 3))


def train(model, optimizer, steps=2):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 4, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(("name", "options"), IMPLEMENTATIONS)
def test_every_state_but_that_of_lambda_is_kept_to_the_bit_and_training_goes_on(name, options):
    model = make_model()
    optimizer = OPTIMIZERS[name](param_groups(model, lr=0.01), **options)
    train(model, optimizer)
    raw = [module.raw_hardness for module in model if isinstance(module, LambdaGELU)]
    assert all(optimizer.state[parameter] for parameter in raw)
    before = {p: copy.deepcopy(optimizer.state[p]) for p in model.parameters() if all(p is not s for s in raw)}
    to_relu_(model)
    assert keep_optimizer_(optimizer, model) == 2
    assert set(optimizer.state) == set(before) == set(model.parameters())
    for parameter, state in before.items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(optimizer.state[parameter][key]), torch.as_tensor(value))
    assert [len(group["params"]) for group in optimizer.param_groups] == [6, 0]
    weights = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer)
    assert all(not torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


def test_schedulers_of_the_learning_rate_go_on_with_the_groups_they_know():
    model = make_model()
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(model, optimizer)
    to_relu_(model)
    keep_optimizer_(optimizer, model)
    rates.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.05])


def test_a_state_dict_fits_an_optimizer_that_was_treated_likewise():
    def swapped():
        model = make_model()
        optimizer = torch.optim.AdamW(param_groups(model, lr=0.01))
        train(model, optimizer)
        to_relu_(model)
        keep_optimizer_(optimizer, model)
        return model, optimizer

    model, optimizer = swapped()
    train(model, optimizer)
    other_model, other = swapped()
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer)
    train(other_model, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other_model.parameters(), strict=True))


def test_the_names_of_parameters_go_along():
    model = make_model()
    # λ first in one group, so that what follows moves up
    named = sorted(model.named_parameters(), key=lambda entry: "raw" not in entry[0])
    optimizer = torch.optim.SGD([{"params": named}], lr=0.1)
    to_relu_(model)
    assert keep_optimizer_(optimizer, model) == 2
    (group,) = optimizer.param_groups
    assert dict(zip(group["param_names"], group["params"], strict=True)) == dict(model.named_parameters())


def test_the_parameters_of_a_loss_stay_where_the_model_comes_with_it():
    model, loss = make_model(), nn.Linear(1, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    to_relu_(model)
    assert keep_optimizer_(optimizer, nn.ModuleList([model, loss])) == 2
    assert len(optimizer.param_groups[0]["params"]) == 8


def test_the_optimizer_of_another_model_is_refused():
    model = make_model()
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer has no parameter of Sequential: it was made for another model"):
        keep_optimizer_(optimizer, model)
    assert len(optimizer.param_groups[0]["params"]) == 8


# --- distillation ----------------------------------------------------------------------------------------------------


def reference_divergence(student, teacher, temperature):
    """T² KL(teacher ‖ student) of one position, in mpmath."""

    def softmax(logits):
        exponentials = [mpmath.exp(mpmath.mpf(x) / temperature) for x in logits]
        return [e / mpmath.fsum(exponentials) for e in exponentials]

    p, q = softmax(teacher), softmax(student)
    return temperature**2 * mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_distillation_loss_is_the_divergence_of_the_student_from_the_teacher(temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 7, dtype=torch.float64).unbind()
    actual = distillation_loss(student, teacher, temperature)
    rows = [
        reference_divergence(s.tolist(), t.tolist(), temperature)
        for s, t in zip(student.reshape(-1, 7), teacher.reshape(-1, 7), strict=True)
    ]
    assert actual.item() == pytest.approx(float(mpmath.fsum(rows) / 15), rel=1e-13)
    assert actual.item() != pytest.approx(distillation_loss(teacher, student, temperature).item(), rel=1e-3)
    mask = torch.arange(15).reshape(3, 5) % 4 == 0
    kept = [row for row, keep in zip(rows, mask.flatten().tolist(), strict=True) if keep]
    masked = distillation_loss(student, teacher, temperature, mask=mask)
    assert masked.item() == pytest.approx(float(mpmath.fsum(kept) / len(kept)), rel=1e-13)
    assert distillation_loss(student, teacher, mask=torch.zeros(3, 5, dtype=torch.bool)).item() == 0.0


def test_what_is_masked_has_no_gradient_whatever_it_is():
    mask = torch.tensor([[True, False, True], [False, True, True]])
    student = torch.where(mask[..., None], torch.randn(2, 3, 4, dtype=torch.float64), math.nan).requires_grad_()
    loss = distillation_loss(student, student.detach() * 2, mask=mask)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert (student.grad[~mask] == 0).all()
    assert (student.grad[mask] != 0).any()


def test_a_class_that_the_teacher_excludes_adds_nothing():
    student, teacher = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    expected = distillation_loss(student, torch.cat([teacher[:, :3], torch.full((5, 1), -1e9)], 1), 2.0)
    teacher[:, 3] = -math.inf
    loss = distillation_loss(student, teacher, 2.0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert student.grad.isfinite().all() and (student.grad[:, 3] > 0).all()  # q − p with p = 0
    without = distillation_loss(student.detach()[:, :3], teacher[:, :3])
    both = distillation_loss(torch.cat([student.detach()[:, :3], teacher[:, 3:]], 1), teacher)
    torch.testing.assert_close(both, without)


def test_only_the_student_gets_a_gradient_and_it_keeps_its_size_with_the_temperature():
    torch.manual_seed(0)
    student = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: distillation_loss(s, teacher, 3.0), student)
    distillation_loss(student, teacher, 1e3).backward()
    assert teacher.grad is None
    # For T → ∞ the loss is the squared distance of the centred logits over twice the number of classes.
    expected = (student - teacher).detach()
    expected = (expected - expected.mean(1, keepdim=True)) / 6 / 4
    torch.testing.assert_close(student.grad, expected, rtol=1e-2, atol=1e-4)


def test_the_loss_of_bfloat16_logits_is_computed_in_float32():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 6).bfloat16().unbind()
    loss = distillation_loss(student, teacher)
    assert loss.dtype == torch.float32 and loss == distillation_loss(student.float(), teacher.float())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (((2, 3), (3, 3)), {}, ValueError, r"same shape .* got \(2, 3\) and \(3, 3\)"),
        (((), ()), {}, ValueError, "classes in the last dimension"),
        (((2, 3), (2, 3)), {"temperature": 0.0}, ValueError, "temperature must be finite and positive, got 0.0"),
        (((2, 3), (2, 3)), {"temperature": math.nan}, ValueError, "temperature must be finite and positive, got nan"),
        (((2, 3), (2, 3)), {"temperature": "1"}, TypeError, "temperature must be a float, got str"),
        (((2, 3), (2, 3)), {"mask": torch.ones(2)}, TypeError, "mask must be boolean, got torch.float32"),
        (((2, 3), (2, 3)), {"mask": torch.ones(3) > 0}, ValueError, r"mask must have shape \(2,\), got \(3,\)"),
    ],
)
def test_what_cannot_be_distilled_is_refused(arguments, options, error, words):
    with pytest.raises(error, match=words):
        distillation_loss(*map(torch.zeros, arguments), **options)


def test_logits_are_found_in_what_models_return():
    logits = torch.ones(2)

    class Output:
        pass

    output = Output()
    output.logits = logits
    assert all(Distillation().logits_of(each) is logits for each in (logits, output, {"logits": logits}))
    assert Distillation(logits=lambda output: output[1]).logits_of((None, logits)) is logits
    with pytest.raises(TypeError, match=r"the model returns tuple, which has no logits: say where they are"):
        Distillation().logits_of((logits,))
    with pytest.raises(ValueError, match="weight must be finite and positive, got -1"):
        Distillation(weight=-1)
    with pytest.raises(TypeError, match="temperature must be a float, got str"):
        Distillation(temperature="hot")


def test_the_teacher_stays_what_the_model_was_before_the_swap():
    model = make_model().insert(1, nn.Dropout(0.5)).insert(1, nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer)
    teacher = Teacher(model)
    x = torch.randn(5, 4)
    model.eval()
    expected = model(x).detach()
    model.train()
    to_relu_(model)
    keep_optimizer_(optimizer, model)
    train(model, optimizer)
    taught = teacher(x)
    assert torch.equal(taught, expected) and not taught.requires_grad
    with relu_substituted(make_model()):
        assert torch.equal(teacher(x), expected)

    other = Teacher(make_model().insert(1, nn.Dropout(0.5)).insert(1, nn.BatchNorm1d(8)))
    assert not torch.equal(other(x), expected)
    other.load_state_dict(teacher.state_dict())
    assert torch.equal(other(x), expected)


def test_the_teacher_of_a_compiled_model_is_a_copy_of_what_is_inside():
    model = make_model()
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(5, 4)
    expected = compiled(x).detach()
    teacher = Teacher(compiled)
    with torch.no_grad():
        model[0].weight.zero_()
    torch.testing.assert_close(teacher(x), expected)


# --- L1 on activations -----------------------------------------------------------------------------------------------


@pytest.fixture
def relus():
    model = make_model().append(nn.ReLU())
    report = to_relu_(model)
    return model, [site.name for site in report.sites]


def test_the_penalty_is_the_mean_output_of_every_former_site_times_a_rising_factor(relus):
    model, names = relus
    penalty = ActivationL1(model, 0.5, 4, sites=names)
    x = torch.randn(6, 4)
    hidden = model[0](x).clamp(min=0)
    unit = hidden.mean() + model[2](hidden).clamp(min=0).mean()
    factors = []
    for _ in range(6):
        model(x)
        loss = penalty.loss()
        torch.testing.assert_close(loss, unit * penalty.factor)
        factors.append(penalty.factor)
        penalty.step()
    assert factors == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    model(x)
    grads = torch.autograd.grad(penalty.loss(), model[0].weight)
    torch.testing.assert_close(grads, torch.autograd.grad(0.5 * unit, model[0].weight))


def test_without_names_every_relu_counts(relus):
    model, names = relus
    some, every = ActivationL1(model, 1.0, 1, sites=names), ActivationL1(model, 1.0, 1)
    some.step()
    every.step()
    out = model(torch.randn(6, 4))
    torch.testing.assert_close(every.loss() - some.loss(), out.mean())


def test_an_evaluation_between_does_not_count(relus):
    model, names = relus
    penalty = ActivationL1(model, 1.0, 1, sites=names)
    penalty.step()
    x = torch.randn(6, 4)
    model(x)
    expected = penalty.loss()
    model(x)
    with torch.no_grad():
        model(2 * x)
    with penalty.paused():
        model(2 * x)
    assert torch.equal(penalty.loss(), expected)
    with pytest.raises(RuntimeError, match=r"no forward with gradient since the last loss\(\)"):
        penalty.loss()
    model(x)
    penalty.step()  # of whom nobody asked
    with pytest.raises(RuntimeError, match="no forward with gradient"):
        penalty.loss()


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_activation_checkpointing_does_again_is_not_counted_again(relus, reentrant):
    model, _ = relus
    x = torch.randn(6, 4, requires_grad=True)
    penalty = ActivationL1(model[2:], 1.0, 1, sites=["3"])
    penalty.step()
    hidden = model[:2](x)
    model[2:](hidden)
    expected = penalty.loss().item()
    for _ in range(2):
        out = checkpoint(model[2:4], model[:2](x), use_reentrant=reentrant)
        if reentrant:  # its forward has no gradient, and so no penalty either
            with pytest.raises(RuntimeError, match="no forward with gradient"):
                penalty.loss()
        else:
            assert penalty.loss().item() == expected
        out.sum().backward()


def test_the_penalty_of_a_compiled_model_is_that_of_the_plain_one(relus):
    model, names = relus
    compiled = torch.compile(model, backend="eager")
    penalty = ActivationL1(compiled, 1.0, 1, sites=names)
    penalty.step()
    x = torch.randn(6, 4)
    losses = []
    for each in (model, compiled, compiled):
        each(x)
        losses.append(penalty.loss())
    torch.testing.assert_close(losses[1:], [losses[0]] * 2)


def test_bfloat16_activations_are_summed_in_float32(relus):
    model, names = relus
    penalty = ActivationL1(model.bfloat16(), 1.0, 1, sites=names)
    penalty.step()
    model(torch.randn(6, 4).bfloat16())
    assert penalty.loss().dtype == torch.float32


def test_the_ramp_resumes_and_ends_with_remove(relus):
    model, names = relus
    first = ActivationL1(model, 1.0, 10, sites=names)
    for _ in range(7):
        first.step()
    second = ActivationL1(model, 1.0, 10, sites=names)
    second.load_state_dict(first.state_dict())
    assert second.factor == first.factor == 0.7
    for other, words in ((ActivationL1(model, 2.0, 10), "factor"), (ActivationL1(model, 1.0, 5), "ramp_steps")):
        with pytest.raises(ValueError, match=f"{words} differs"):
            other.load_state_dict(first.state_dict())
        assert other.factor == 0.0
    with pytest.raises(ValueError, match="state_dict lacks ramp_steps"):
        first.load_state_dict({"factor": 1.0, "step": 3})
    first.remove()
    model(torch.randn(6, 4))
    with pytest.raises(RuntimeError, match="no forward with gradient"):
        first.loss()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((0.0, 1), {}, ValueError, "factor must be finite and positive, got 0.0"),
        (("1", 1), {}, TypeError, "factor must be a float, got str"),
        ((1.0, 0), {}, ValueError, "ramp_steps must be at least 1, got 0"),
        ((1.0, 1.5), {}, TypeError, "ramp_steps must be an int, got float"),
        ((1.0, 1), {"sites": ["0"]}, ValueError, r"sites must name ReLUs of the model, got \['0'\]"),
        ((1.0, 1), {"sites": []}, ValueError, "sites must name ReLUs of the model"),
    ],
)
def test_a_penalty_without_sense_is_refused_and_leaves_no_hook(relus, arguments, options, error, words):
    model, _ = relus
    with pytest.raises(error, match=words):
        ActivationL1(model, *arguments, **options)
    assert all(not module._forward_hooks for module in model.modules())
