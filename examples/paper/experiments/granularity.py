"""Left open by the paper: one λ for every neuron of a linear layer, or every channel of a convolution."""

from examples.paper.arm import UNIFORM, Arm

from .experiment import MLPS, Experiment

NEURONS = Arm("uniform-neurons", per="channel")

EXPERIMENTS = (Experiment("granularity", "one λ per layer or per neuron", (UNIFORM, NEURONS), MLPS),)
