"""λ-GELU with timm: its GELU classes, its models, its optimizers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lambda_gelu
from lambda_gelu import convert_, find_sites, relu_substituted, to_relu_

timm = pytest.importorskip("timm", exc_type=ImportError)  # it imports torchvision, which may be missing
from timm.layers import activations  # noqa: E402
from timm.optim import create_optimizer_v2, param_groups_weight_decay  # noqa: E402

X = torch.linspace(-9, 9, 180001, dtype=torch.float64)


@pytest.mark.parametrize(("name", "error"), [("GELU", 0.0), ("GELUTanh", 4.7324e-4)])
def test_every_gelu_of_timm_is_converted_within_its_stated_error(name, error):
    model = nn.Sequential(getattr(activations, name)())
    original = model[0]
    (site,) = convert_(model, init_hardness=1.001).sites
    assert site.error == pytest.approx(error + 0.2935253 * (1 - 1 / 1.001), rel=1e-4)
    y = lambda_gelu.lambda_gelu(X, model[0].hardness.item())
    assert (original(X) - y).abs().max().item() <= site.error
    assert (original(X) - F.gelu(X)).abs().max().item() == pytest.approx(error, rel=1e-4, abs=1e-12)


def test_what_only_looks_like_gelu_is_left_alone_and_named():
    model = nn.Sequential(activations.QuickGELU(), nn.GELU())
    assert convert_(model).skipped["0"].startswith("QuickGELU is not GELU: off by 0.02 at x = ")
    assert isinstance(model[0], activations.QuickGELU)


def make_vit():
    return timm.models.VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3)


def make_convnext():
    return timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=3, ls_init_value=1.0)


def make_mixer():
    model = timm.models.MlpMixer(img_size=8, patch_size=4, embed_dim=16, num_blocks=2, num_classes=3)
    nn.init.normal_(model.head.weight)  # which is zero at first: nothing below would get a gradient
    return model


MODELS = {"vit": (make_vit, 8, 2), "convnext": (make_convnext, 32, 4), "mixer": (make_mixer, 8, 4)}


@pytest.mark.parametrize("act_layer", ["gelu", "gelu_tanh"])
def test_the_activations_that_timm_makes_by_name_are_known(act_layer):
    model = nn.Sequential(timm.layers.create_act_layer(act_layer))
    assert len(convert_(model).sites) == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_converted_trained_with_its_own_groups_and_made_a_relu_network(name):
    torch.manual_seed(0)
    make, size, count = MODELS[name]
    model = make().eval()
    x = torch.randn(2, 3, size, size)
    originals = dict(model.named_modules())
    report = convert_(model, example_inputs=x)
    assert [(site.calls, site.shared_with) for site in report.sites] == [(1, ())] * count
    assert report.functional_calls == () and report.skipped == {}
    seen = {}
    for site in report.sites:
        model.get_submodule(site.name).register_forward_hook(
            lambda module, args, output, site=site: seen.update({site: (args[0], output)})
        )
    model(x)
    for site in report.sites:
        argument, output = seen[site]
        assert 0 < (originals[site.name](argument) - output).abs().max().item() <= site.error + 1e-6

    # timm's rule gives what has one dimension no decay, λ included; ours takes λ out.
    groups = param_groups_weight_decay(model, weight_decay=0.05)
    optimizer = torch.optim.AdamW(lambda_gelu.param_groups(model, lr=1e-3, groups=groups))
    raw = [site.raw_hardness for site in find_sites(model).values()]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05, 0.0]
    assert all(a is b for a, b in zip(optimizer.param_groups[-1]["params"], raw, strict=True))
    hardness = [site.hardness.item() for site in find_sites(model).values()]
    nn.functional.cross_entropy(model.train()(x), torch.tensor([0, 2])).backward()
    optimizer.step()
    assert all(site.hardness.item() != old for site, old in zip(find_sites(model).values(), hardness, strict=True))

    model.eval()
    with relu_substituted(model):
        as_relu = model(x)
    assert len(to_relu_(model).sites) == count
    assert torch.equal(model(x), as_relu)


def test_timms_factory_takes_the_groups():
    model = make_vit()
    convert_(model)
    groups = lambda_gelu.param_groups(model, lr=1e-3, groups=param_groups_weight_decay(model, weight_decay=0.05))
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=1e-3)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 1e-3, 1e-2])
