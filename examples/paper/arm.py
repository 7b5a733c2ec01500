"""What is compared on a system: the activation, how its λ starts, and how it is hardened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

import lambda_gelu
from lambda_gelu import AllowedLoss, HardnessScheduler, LambdaGELU, Settled

from .system import Activation, System


@dataclass(frozen=True)
class Arm:
    """One way of training, and of coming from it to ReLU. The defaults are the paper's protocol, ε = 0.1 is ours.

    Attributes:
        activation: ``"GELU"``, ``"ReLU"`` or ``"λ-GELU"``; what follows is for the last.
        init: the profile of λ over depth: ``"uniform"``, ``"increasing"`` or ``"decreasing"``.
        per: ``"layer"`` or ``"channel"``: one λ for every channel, that is for every neuron of a linear layer.
        temperature, lr_multiplier: τ and α. Default None: those of the system.
        start: the onset as a part of the run, or ``"settled"``: once λ and the loss have settled.
        hardens: whether λ is frozen and raised at all, or learned to the end (the paper's sections IV-A and IV-B).
        schedule: how λ rises.
        gate_gap: ε of the paper's target √(2/π)/ε.
        tolerance_db: instead: targets for every site from what it is given, measured anew after every epoch.
        allowed_loss: λ waits where the training loss is this much above the lowest (nats). Default None: it never does.
        recovery: how much of the run a checkpoint is trained on after it was swapped and corrected.
    """

    name: str
    activation: str = "λ-GELU"
    init: str = "uniform"
    per: str = "layer"
    temperature: float | None = None
    lr_multiplier: float | None = None
    start: float | str = 0.25
    hardens: bool = True
    schedule: str = "linear"
    gate_gap: float = 0.1
    tolerance_db: float | None = None
    allowed_loss: float | None = None
    recovery: float = 0.0

    @property
    def has_hardness(self) -> bool:
        return self.activation == "λ-GELU"

    def network(self, system: System) -> nn.Module:
        """With the weights that the random numbers of torch give: the same for every arm."""
        network = system.network(self._activation(system))
        if self.has_hardness:
            lambda_gelu.init_hardness_(network, self.init)
        return network

    def scheduler(self, network: nn.Module, total_steps: int) -> HardnessScheduler | None:
        """None where nothing is hardened."""
        if not (self.has_hardness and self.hardens):
            return None
        return HardnessScheduler(
            network,
            total_steps,
            start=Settled() if self.start == "settled" else self.start,
            target=lambda_gelu.relu_gap.target_from_gate_gap(self.gate_gap),
            schedule=self.schedule,
            rate=None if self.allowed_loss is None else AllowedLoss(self.allowed_loss),
        )

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def _activation(self, system: System) -> Activation:
        if self.has_hardness:
            temperature = system.temperature if self.temperature is None else self.temperature
            return lambda channels, channel_dim: LambdaGELU(
                channels if self.per == "channel" else 1, temperature=temperature, channel_dim=channel_dim
            )
        plain: dict[str, Callable[[], nn.Module]] = {"GELU": nn.GELU, "ReLU": nn.ReLU}
        return lambda channels, channel_dim: plain[self.activation]()


GELU = Arm("gelu", activation="GELU")
RELU = Arm("relu", activation="ReLU")
UNIFORM = Arm("uniform")
INCREASING = Arm("increasing", init="increasing")
DECREASING = Arm("decreasing", init="decreasing")
