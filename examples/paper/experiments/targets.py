"""Left open by the paper: how hard is hard enough. One λ for all layers, or targets from what each layer is given."""

from examples.paper.arm import UNIFORM, Arm

from .experiment import MLPS, Experiment

HARD = Arm("uniform-hard", gate_gap=0.01)
BY_TOLERANCE = tuple(Arm(f"uniform-{db}db", tolerance_db=float(db), schedule="geometric") for db in (30, 40))

EXPERIMENTS = (Experiment("targets", "one target, or one for every layer", (UNIFORM, HARD, *BY_TOLERANCE), MLPS),)
