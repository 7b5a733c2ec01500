"""Table II of the paper, for every system by its name: GELU → ReLU, hardened λ-GELU → ReLU, and ReLU from scratch."""

from examples.paper.arm import DECREASING, GELU, INCREASING, RELU, UNIFORM
from examples.paper.systems import SYSTEMS

from .experiment import MLPS, Experiment

ARMS = (GELU, RELU, UNIFORM, INCREASING, DECREASING)

EXPERIMENTS = tuple(
    Experiment(system.name, f"Table II: {system.title}", ARMS, (system.name,), 5 if system.name in MLPS else 3)
    for system in SYSTEMS.values()
)
