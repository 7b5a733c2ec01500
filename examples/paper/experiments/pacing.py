"""Left open by the paper: hardening that starts when λ has settled, and waits where it costs."""

from examples.paper.arm import UNIFORM, Arm

from .experiment import MLPS, Experiment

SETTLED = Arm("uniform-settled", start="settled")
ALLOWED = Arm("uniform-allowed", allowed_loss=0.005)

EXPERIMENTS = (Experiment("pacing", "adaptive onset and rate", (UNIFORM, SETTLED, ALLOWED), MLPS),)
