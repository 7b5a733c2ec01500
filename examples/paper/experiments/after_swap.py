"""Left open by the paper: bias correction, and a tenth of the training after the swap.

The correction is measured in every run with sites; what is added here is the training after it.
"""

from examples.paper.arm import RELU, Arm

from .experiment import MLPS, Experiment

GELU_RECOVERED = Arm("gelu-recovered", activation="GELU", recovery=0.1)
RECOVERED = Arm("uniform-recovered", recovery=0.1)

EXPERIMENTS = (Experiment("after-swap", "bias correction and recovery", (RELU, GELU_RECOVERED, RECOVERED), MLPS),)
