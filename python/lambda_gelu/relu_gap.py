"""What it costs to replace λ-GELU by ReLU: the error e(x) = ReLU(x) - x Φ(λx) = |x| Φ(-λ|x|) >= 0, in closed form.

The formulas live in C++ (``lambda_gelu/math/relu_gap.h``). λ enters only through κ = λσ, the *effective hardness*, σ
being the standard deviation of the pre-activations.
"""

from ._C import (
    expected_gap,
    expected_sq_gap,
    expected_sq_relu,
    gate_gap,
    ser_db,
    target_from_gate_gap,
    target_from_ser,
)

__all__ = [
    "expected_gap",
    "expected_sq_gap",
    "expected_sq_relu",
    "gate_gap",
    "ser_db",
    "target_from_gate_gap",
    "target_from_ser",
]
