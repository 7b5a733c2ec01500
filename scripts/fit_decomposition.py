"""Fits R of rules/decomposition.py and prints its coefficients: python scripts/fit_decomposition.py (needs scipy).

R(z) = Φ(−z) exp(z²/2) on [0, 13.3] as P/Q with P(0) = 1/2 and Q(0) = 1: linearised least squares of P − R Q on
Chebyshev nodes of (z − 1.5)/(z + 1.5) with Lawson's reweighting. The error allowed grows with z, as that of the
rounded z² does, which the exponential multiplies.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erfcx

DEGREES = (3, 4)
END = 13.3
SLACK = 0.25  # relative error allowed: proportional to 1 + SLACK z²


def fit() -> tuple[float, np.ndarray, np.ndarray]:
    """The largest weighted error, and the coefficients of P and Q, lowest degree first."""
    nodes = np.cos(np.pi * (np.arange(3000) + 0.5) / 3000)
    low, high = -1.0, (END - 1.5) / (END + 1.5)
    u = (low + high) / 2 + (high - low) / 2 * nodes
    z = 1.5 * (1 + u) / (1 - u)
    r = erfcx(z / np.sqrt(2)) / 2
    allowed = r * (1 + SLACK * z * z)
    p_degree, q_degree = DEGREES
    columns = [z**i for i in range(1, p_degree + 1)] + [-r * z**j for j in range(1, q_degree + 1)]
    matrix, right = np.stack(columns, 1), r - 0.5
    lawson, denominator = np.ones_like(z), np.ones_like(z)
    best = (np.inf, np.empty(0), np.empty(0))
    for _ in range(200):
        weight = np.sqrt(lawson) / allowed / denominator
        weighted = matrix * weight[:, None]
        scale = np.abs(weighted).max(0)
        solution = np.linalg.lstsq(weighted / scale, right * weight, rcond=None)[0] / scale
        p, q = np.r_[0.5, solution[:p_degree]], np.r_[1.0, solution[p_degree:]]
        denominator = np.polyval(q[::-1], z)
        error = np.abs(np.polyval(p[::-1], z) / denominator - r) / allowed
        if error.max() < best[0]:
            best = (error.max(), p, q)
        lawson = lawson * (error + 1e-3 * error.max())
        lawson /= lawson.mean()
    return best


if __name__ == "__main__":
    worst, p, q = fit()
    print(f"relative error at most {worst:.2g} (1 + {SLACK} z²)")
    print("P =", ", ".join(f"{c:.9g}" for c in p))
    print("Q =", ", ".join(f"{c:.9g}" for c in q))
