"""A model that an engine has wrapped already, given to a function that would change it: works or says what to do."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from group import Group, fact
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import lambda_gelu
from facts.training import EXAMPLES, SWITCH, batches, make_model, make_scheduler, train

Wrap = Callable[[nn.Module], nn.Module]


def wrappers(group: Group) -> dict[str, Wrap]:
    return {
        "DDP": lambda model: DistributedDataParallel(model, process_group=group.process_group),
        "FSDP1": lambda model: flattened(group, model, use_orig_params=True),
        "FSDP2": lambda model: fully_shard(model, mesh=group.mesh),
        "DTensor": lambda model: parallelize_module(model, group.mesh, {"0": ColwiseParallel()}),
    }


def flattened(group: Group, model: nn.Module, **options: bool) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(model, process_group=group.process_group, device_id=torch.device("cpu"), **options)


@fact(2)
def convert_refuses_what_is_wrapped_already(group: Group) -> None:
    for name, wrap in wrappers(group).items():
        model = wrap(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1)))
        with pytest.raises(ValueError, match=r"convert first, then (wrap|spread)"):
            lambda_gelu.convert_(model)
        assert any(isinstance(module, nn.GELU) for module in model.modules()), name


@fact(2)
def corrections_and_folds_are_refused_where_no_rank_has_the_weights(group: Group) -> None:
    x = batches()[0][0]
    correct = partial(
        lambda_gelu.to_relu_,
        correction="bias",
        calibrate=lambda model: model(x),
        evaluate=lambda model: 0.0,
        higher_is_better=True,
    )
    for name, wrap in wrappers(group).items():
        advice = r"give its \.module" if name == "DDP" else "before the model is spread over ranks"
        for use in (correct, lambda_gelu.fold_hardness_):
            model = wrap(make_model())
            if name == "FSDP1" and use is correct:
                advice = "flattened parameter|before the model is spread over ranks"
            assert all(re.search(advice, text) for text in refusals(group, partial(use, model))), (name, use)
            assert len(lambda_gelu.find_sites(model)) == 2


@fact(2)
def to_relu_refuses_ddp_and_says_what_to_do(group: Group) -> None:
    model = DistributedDataParallel(make_model(), process_group=group.process_group)
    nested = nn.Sequential(nn.Identity(), model)
    x = batches()[0][0]
    for each, name in ((model, "1"), (nested, "1.module.1")):
        with pytest.raises(
            ValueError, match=rf"{name} is inside DistributedDataParallel.*give its \.module to to_relu_"
        ):
            lambda_gelu.to_relu_(each)
    model(x).sum().backward()
    assert len(lambda_gelu.to_relu_(model.module).sites) == 2
    anew = DistributedDataParallel(model.module, process_group=group.process_group)
    for _ in range(3):
        anew(x).sum().backward()


@fact(2)
def ddp_evaluates_as_relu_in_between(group: Group) -> None:
    plain = make_model()
    model = DistributedDataParallel(copy.deepcopy(plain), process_group=group.process_group)
    x = batches()[0][0]
    for no_grad in (True, False):
        model(x).sum().backward()
        with (
            lambda_gelu.relu_substituted(model),
            lambda_gelu.relu_substituted(plain),
            torch.set_grad_enabled(not no_grad),
        ):
            assert torch.equal(model(x), plain(x))
    model(x).sum().backward()


def refusals(group: Group, use: Callable[[], object]) -> list[str]:
    """What each rank says."""
    try:
        use()
        text = ""
    except ValueError as error:
        text = str(error)
    everyone = [""] * group.size
    distributed.all_gather_object(everyone, text, group=group.process_group)
    return everyone


@fact(2)
def fsdp1_is_refused_where_it_holds_the_hardness_and_works_where_it_gives_it(group: Group) -> None:
    words = re.compile(r"raw_hardness is part of a flattened parameter here.*summon_full_params\(model\).*fully_shard")
    for use_orig_params in (True, False):
        model = flattened(group, make_model(), use_orig_params=use_orig_params)
        site = lambda_gelu.find_sites(model)["3"]
        scheduler = make_scheduler(model)
        for _ in range(SWITCH - 1):
            scheduler.step()
        uses: list[Callable[[], object]] = [
            lambda site=site: site.hardness,
            lambda site=site: site.set_hardness(2.0),
            scheduler.step,
            site.freeze_hardness,
            partial(lambda_gelu.init_hardness_, model),
            partial(lambda_gelu.to_relu_, model),
        ]
        refused = [[bool(words.match(text)) for text in refusals(group, use)] for use in uses]
        # With the original parameters a rank that happens to have all λ of a site has nothing to refuse there.
        assert all(any(ranks) if use_orig_params else all(ranks) for ranks in refused), refused
        model = flattened(group, make_model(), use_orig_params=use_orig_params)
        sites = lambda_gelu.find_sites(model)
        scheduler = make_scheduler(model)
        with FullyShardedDataParallel.summon_full_params(model):
            lambda_gelu.init_hardness_(model, "increasing", 1.5, 3.0)
        with FullyShardedDataParallel.summon_full_params(model):
            torch.testing.assert_close(sites["3"].hardness.detach(), torch.full((5,), 3.0, dtype=torch.double))
            for _ in range(SWITCH):
                scheduler.step()
        assert all(site.is_frozen for site in sites.values())
        model(batches()[0][0][group.part(EXAMPLES)]).sum().backward()
        with FullyShardedDataParallel.summon_full_params(model):
            assert len(lambda_gelu.to_relu_(model).sites) == 2
        model(batches()[0][0]).sum().backward()
    with pytest.raises(ValueError, match="use_orig_params=True"):
        lambda_gelu.param_groups(flattened(group, make_model(), use_orig_params=False), lr=0.1)


@fact(1)
def fsdp1_with_whole_parameters_trains_as_in_one_process(group: Group) -> None:
    model = flattened(group, make_model(), use_orig_params=True)
    torch.testing.assert_close(train(model), train(make_model()), rtol=1e-9, atol=0)
