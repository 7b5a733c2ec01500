"""Shadow evaluation: the score of a model as it stands and as if it were a ReLU network already."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_finite, check_names, check_positive
from ._scores import as_number, cuda_devices
from .modules import LambdaGELU
from .sites import find_sites, has_sites, unwrapped
from .statistics import Statistics, observe
from .substitution import relu_substituted

_HARDNESS_KEYS = ("raw_hardness", "hardness_override", "_extra_state")


@dataclass(frozen=True)
class ShadowScore:
    """What an evaluation gives as it stands and as if substituted.

    Attributes:
        as_is: the score with λ-GELU.
        as_relu: the score with ReLU at every site and the same weights.
        statistics: of the pre-activations during the evaluation as it stands, where they were asked for.
    """

    as_is: float
    as_relu: float
    statistics: Statistics | None = field(default=None, repr=False, compare=False)

    @property
    def change(self) -> float:
        """What the swap does to the score now: ``as_relu - as_is``."""
        return self.as_relu - self.as_is


def shadow_evaluate(
    model: nn.Module, evaluate: Callable[[nn.Module], float | Tensor], *, statistics: bool = False
) -> ShadowScore:
    """Evaluates a model twice: within :func:`relu_substituted`, and as it stands.

    Both see the same random numbers of torch, and afterwards its generators are where one evaluation leaves them.

    Args:
        model: with at least one site.
        evaluate: takes the model and gives its score, a number or a tensor of one element. Switching to ``eval()`` and
            back, and ``torch.no_grad()``, are its part.
        statistics: whether the pre-activations of the second evaluation are observed, per site. Default False.

    Raises:
        ValueError: for a model without a site, as after :func:`to_relu_`.
        TypeError: where `evaluate` gives no number.
    """
    with torch.random.fork_rng(devices=cuda_devices(model)), relu_substituted(model):
        as_relu = as_number(evaluate(model))
    if not statistics:
        return ShadowScore(as_number(evaluate(model)), as_relu)
    with observe(model) as observed:
        as_is = as_number(evaluate(model))
    return ShadowScore(as_is, as_relu, observed)


@dataclass(frozen=True)
class BestCheckpoint:
    """The checkpoint that :class:`BestSubstituted` keeps.

    Attributes:
        score: as a ReLU network.
        as_is: as it stood, None where only the score as a ReLU network was given.
        step: as given to ``update``, or None.
        ser_db: by site at that time; empty for a network that had no site left.
    """

    score: float
    as_is: float | None
    step: int | None
    ser_db: dict[str, float]


class BestSubstituted:
    """Keeps the checkpoint that is best *as a ReLU network*, once every site has reached its SER.

    The epoch with the best validation metric tends to come before the hardening is done: what is swapped then is a
    network that is not ready for it. Here a score counts only as if substituted, and only where at every site the
    signal-to-error ratio of the swap, for the present λ and the given statistics, is within `slack_db` of its
    tolerance. After the swap every score counts.

    Args:
        model: the model that is trained, wrapped or not.
        higher_is_better: whether a higher score is better.
        tolerance_db: SER that every site must reach: a float, or one for every site name, as for sites whose target was
            capped. Default 30.
        slack_db: how much below it counts as reached, since statistics drift after the targets were chosen. Default 0.5
            (ours).
        path: a file for the checkpoint, replaced as a whole at each improvement; its folder must exist. Default None:
            in memory, on the devices of the model. Where several processes train, each needs a path of its own.

    Attributes:
        best: the :class:`BestCheckpoint`, None until there is one.
        below: SER in dB of the sites that had not reached their tolerance at the last update.

    Raises:
        ValueError: for a tolerance that is not finite and positive, a slack that is not finite or negative, a name
            that is no site or a site that has none; TypeError for no number.

    Example::

        >>> best = BestSubstituted(model, higher_is_better=True)
        >>> for epoch in range(epochs):
        ...     train(model)
        ...     best.update(shadow_evaluate(model, accuracy, statistics=True), step=epoch)
        >>> best.load_()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        higher_is_better: bool,
        tolerance_db: float | Mapping[str, float] = 30.0,
        slack_db: float = 0.5,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(higher_is_better, bool):
            raise TypeError(f"higher_is_better must be a bool, got {type(higher_is_better).__name__}")
        self._model = model
        self._sites = tuple(find_sites(model)) if has_sites(model) else ()
        self._higher_is_better = higher_is_better
        self._tolerance = self._checked_tolerance(tolerance_db)
        check_finite("slack_db", slack_db)
        if slack_db < 0:
            raise ValueError(f"slack_db must not be negative, got {slack_db}")
        self._slack = float(slack_db)
        self._path = None if path is None else Path(path)
        self._kept: dict[str, Any] | None = None
        self.best: BestCheckpoint | None = None
        self.below: dict[str, float] = {}

    @property
    def tolerance_db(self) -> dict[str, float]:
        """By site name."""
        return dict(self._tolerance)

    def set_tolerance(self, tolerance_db: Mapping[str, float]) -> None:
        """Another tolerance for every site from now on, as when targets have been chosen and capped.

        Args:
            tolerance_db: any number by site name; −∞ for a site of which nothing is asked.

        Raises:
            ValueError: for a name that is no site, a site without a tolerance, and for NaN; nothing is changed.
        """
        check_names("tolerance_db", tolerance_db, self._sites)
        wrong = [name for name, value in tolerance_db.items() if math.isnan(value)]
        if wrong:
            raise ValueError(f"tolerance_db must be a number, got nan at {', '.join(wrong)}")
        self._tolerance = {name: float(tolerance_db[name]) for name in self._sites}

    def update(
        self, score: ShadowScore | float | Tensor, statistics: Statistics | None = None, *, step: int | None = None
    ) -> bool:
        """Keeps the model as it is now if it is the best ReLU network so far.

        Args:
            score: as :func:`shadow_evaluate` gives it; or the score as a ReLU network alone.
            statistics: of the pre-activations. Default None: those of the `score`.
            step: a number to find it again by.

        Returns:
            bool: whether it was kept. A score that is NaN never is.

        Raises:
            ValueError: where the model has sites and there are no statistics, or those of another model, or of a site
                that was not executed or whose activations were not finite; nothing is changed.
        """
        as_relu = score.as_relu if isinstance(score, ShadowScore) else as_number(score)
        as_is = score.as_is if isinstance(score, ShadowScore) else None
        ser = self.check(score, statistics)
        self.below = {name: value for name, value in ser.items() if not value >= self._tolerance[name] - self._slack}
        if self.below or not self._improves(as_relu):
            return False
        kept = _snapshot(unwrapped(self._model))
        best = BestCheckpoint(as_relu, as_is, step, ser)
        if self._path is not None:
            _write(self._path, {**kept, "best": asdict(best)})
            kept = {"hardness_keys": kept["hardness_keys"]}
        self._kept, self.best = kept, best
        return True

    def check(self, score: ShadowScore | float | Tensor, statistics: Statistics | None = None) -> dict[str, float]:
        """The SER in dB of every site, empty for a model without one; raises as :meth:`update`, and keeps nothing."""
        if not has_sites(self._model):
            return {}
        return self._ser(score.statistics if statistics is None and isinstance(score, ShadowScore) else statistics)

    def load_(self) -> BestCheckpoint:
        """Puts the best checkpoint into the model.

        Where the model has become a ReLU network since, everything but λ is loaded.

        Raises:
            RuntimeError: where there is none yet.
            ValueError: where it is a ReLU network and the model is not, or it is of another model; nothing is changed.
        """
        if self.best is None or self._kept is None:
            raise RuntimeError(f"no checkpoint is kept yet; sites below their SER at the last update: {self.below}")
        kept = self._kept if self._path is None else torch.load(self._path, weights_only=True, map_location="cpu")
        model = unwrapped(self._model)
        present = model.state_dict()
        unexpected = [key for key in kept["model"] if key not in present]
        missing = [key for key in present if key not in kept["model"]]
        if missing and all(key.rpartition(".")[2] in _HARDNESS_KEYS for key in missing):
            raise ValueError(
                f"the best checkpoint is a ReLU network, and the model is not yet ({missing[0]}): to_relu_ it first"
            )
        gone = set(kept["hardness_keys"])
        if missing or not gone.issuperset(unexpected):
            raise ValueError(f"the best checkpoint is of another model: it lacks {missing}, and has {unexpected} too")
        model.load_state_dict({key: value for key, value in kept["model"].items() if key not in unexpected})
        return self.best

    def state_dict(self) -> dict[str, Any]:
        """Plan and best checkpoint (its weights included unless they are in a file), for ``torch.save``."""
        return {
            "higher_is_better": self._higher_is_better,
            "tolerance_db": dict(self._tolerance),
            "slack_db": self._slack,
            "best": None if self.best is None else asdict(self.best),
            "kept": None if self._kept is None else dict(self._kept),
            "below": dict(self.below),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resumes; the tolerance is that of the state.

        Raises:
            ValueError: for a state that is not one of this class, of another direction, slack or sites, or one whose
                weights are in a file where this one has no path, or the other way round; nothing is changed.
        """
        missing = [key for key in self.state_dict() if key not in state_dict]
        if missing:
            raise ValueError(f"state_dict lacks {', '.join(missing)}")
        for key, mine in (("higher_is_better", self._higher_is_better), ("slack_db", self._slack)):
            if state_dict[key] != mine:
                raise ValueError(f"{key} differs: the state has {state_dict[key]!r}, this one {mine!r}")
        if self._sites and set(state_dict["tolerance_db"]) != set(self._sites):
            raise ValueError(f"the state is of sites {list(state_dict['tolerance_db'])}, not {list(self._sites)}")
        kept = state_dict["kept"]
        if kept is not None and ("model" in kept) != (self._path is None):
            raise ValueError("path differs: the weights are in a file in one of the two, and not in the other")
        best = state_dict["best"]
        self._tolerance = dict(state_dict["tolerance_db"])
        self._kept = None if kept is None else _copied(kept)
        self.best = None if best is None else BestCheckpoint(**{f.name: best[f.name] for f in fields(BestCheckpoint)})
        self.below = dict(state_dict["below"])

    def _improves(self, score: float) -> bool:
        if self.best is None:
            return not math.isnan(score)
        return score > self.best.score if self._higher_is_better else score < self.best.score

    def _ser(self, statistics: Statistics | None) -> dict[str, float]:
        if statistics is None:
            raise ValueError(
                "statistics are needed while the model has sites: shadow_evaluate(..., statistics=True), or observe it"
            )
        statistics.check_model(self._model)
        statistics.require_complete("the SER of the swap")
        return {name: statistics[name].ser_db(site.hardness.tolist()) for name, site in find_sites(self._model).items()}

    def _checked_tolerance(self, tolerance: float | Mapping[str, float]) -> dict[str, float]:
        if not isinstance(tolerance, Mapping):
            return dict.fromkeys(self._sites, _checked_tolerance_db("tolerance_db", tolerance))
        check_names("tolerance_db", tolerance, self._sites)
        return {name: _checked_tolerance_db(f"tolerance_db of {name!r}", tolerance[name]) for name in self._sites}


def _snapshot(model: nn.Module) -> dict[str, Any]:
    state = model.state_dict()
    places = model.named_modules(remove_duplicate=False)  # the state dict has a shared site at each of its places
    prefixes = [name for name, module in places if isinstance(module, LambdaGELU)]
    hardness = {f"{prefix}.{key}" if prefix else key for prefix in prefixes for key in _HARDNESS_KEYS}
    return {"model": _copied(state), "hardness_keys": [key for key in state if key in hardness]}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return copy.deepcopy(value)


def _write(path: Path, contents: Any) -> None:
    """The file is the old one or the new one, whenever the process ends."""
    part = path.with_name(f"{path.name}.part")
    torch.save(contents, part)
    os.replace(part, path)


def _checked_tolerance_db(name: str, value: float) -> float:
    check_positive(name, value)
    return float(value)
