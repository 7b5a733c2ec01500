"""Left open by the paper: the form of the schedule. The paper's is linear in λ."""

from examples.paper.arm import UNIFORM, Arm

from .experiment import MLPS, Experiment

OTHERS = tuple(Arm(f"uniform-{schedule}", schedule=schedule) for schedule in ("geometric", "harmonic", "cosine"))

EXPERIMENTS = (Experiment("schedules", "four schedules", (UNIFORM, *OTHERS), MLPS),)
