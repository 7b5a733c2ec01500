"""Figure 1 of the paper: drift and score over (τ, α), with λ learned to the end. The grids are ours."""

from examples.paper.arm import GELU, Arm

from .experiment import Experiment

TEMPERATURES = (0.05, 0.1, 0.5, 1.0)
LR_MULTIPLIERS = (1.0, 5.0, 10.0)

ARMS = tuple(
    Arm(f"uniform-tau{tau:g}-alpha{alpha:g}", temperature=tau, lr_multiplier=alpha, hardens=False)
    for tau in TEMPERATURES
    for alpha in LR_MULTIPLIERS
)

EXPERIMENTS = (Experiment("grid", "temperature and learning rate of λ", (GELU, *ARMS), ("adult",), 3),)
