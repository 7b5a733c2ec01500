"""The experiments by name. One file each; a new one is added to the list below."""

from __future__ import annotations

from . import after_swap, granularity, grid, pacing, profiles, schedules, substitution, targets
from .experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for module in (substitution, profiles, grid, granularity, targets, pacing, schedules, after_swap)
    for experiment in module.EXPERIMENTS
}
