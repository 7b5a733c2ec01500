"""Optimizers that move a parameter whose gradient is zero, by momentum, by decay or by their own noise."""

from __future__ import annotations

import torch

OPTIMIZERS = {
    "SGD with momentum": lambda groups, **options: torch.optim.SGD(groups, lr=0.05, momentum=0.9, **options),
    "SGD with Nesterov momentum": lambda groups, **options: torch.optim.SGD(
        groups, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1, **options
    ),
    "Adam": lambda groups, **options: torch.optim.Adam(groups, lr=0.05, weight_decay=0.1, **options),
    "AdamW with decay": lambda groups, **options: torch.optim.AdamW(groups, lr=0.05, weight_decay=0.5, **options),
    "Adam with AMSGrad": lambda groups, **options: torch.optim.Adam(groups, lr=0.05, amsgrad=True, **options),
    "NAdam": lambda groups, **options: torch.optim.NAdam(groups, lr=0.05, **options),
    "RMSprop with momentum": lambda groups, **options: torch.optim.RMSprop(groups, lr=0.05, momentum=0.9, **options),
    "Adafactor": lambda groups, **options: torch.optim.Adafactor(groups, lr=0.05, weight_decay=0.5, **options),
}
"""Name -> function of parameters or parameter groups (and further options) that makes the optimizer."""

FUSED = ("SGD with momentum", "Adam", "AdamW with decay")
"""Those that torch has fused on the CPU as well: `OPTIMIZERS[name](groups, fused=True)`."""

IMPLEMENTATIONS = [(name, {"foreach": foreach}) for name in OPTIMIZERS for foreach in (False, True)] + [
    (name, {"fused": True}) for name in FUSED
]
"""(name, options) of every optimizer in every implementation."""
