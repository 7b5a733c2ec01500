"""Sections IV-A, IV-B of the paper, λ learned to the end: profiles over depth, drift, rank correlation, best epochs."""

from examples.paper.arm import GELU, RELU, Arm

from .experiment import MLPS, Experiment

UNIFORM, INCREASING, DECREASING = (
    Arm(f"{init}-learned", init=init, hardens=False) for init in ("uniform", "increasing", "decreasing")
)

EXPERIMENTS = (Experiment("profiles", "λ learned to the end", (GELU, RELU, UNIFORM, INCREASING, DECREASING), MLPS),)
