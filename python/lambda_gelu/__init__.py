"""GELU with a learnable hardness, f(x; λ) = x Φ(λx), and its way from GELU (λ = 1) to ReLU (λ → ∞).

After "λ-GELU" (arXiv 2603.21991).
"""

from __future__ import annotations

from pathlib import Path as _Path

import torch as _torch  # first: it loads the libtorch that our libraries need

from . import _build_info
from ._torch_version import check_torch_version as _check_torch_version

_check_torch_version(_build_info.torch_version, _torch.__version__)

from . import _C, relu_gap, rules  # noqa: E402, F401
from .compiler import compile_mode, set_compile_mode  # noqa: E402
from .conversion import ConversionReport, convert_  # noqa: E402
from .folding import FoldingReport, fold_hardness_  # noqa: E402
from .functional import (  # noqa: E402
    gradient_reuse_count,
    gradient_reuse_enabled,
    lambda_gelu,
    set_gradient_reuse,
    softplus_lambda_gelu,
)
from .hardening import HardnessScheduler  # noqa: E402
from .histogram import Histogram  # noqa: E402
from .init import init_hardness_  # noqa: E402
from .inspection import InspectedSite, InspectionReport, inspect_sites  # noqa: E402
from .modules import LambdaGELU  # noqa: E402
from .optim import param_groups  # noqa: E402
from .pacing import AllowedLoss, Remaining, Settled  # noqa: E402
from .protocol import Substitution  # noqa: E402
from .recovery import ActivationL1, Distillation, Teacher, distillation_loss, keep_optimizer_  # noqa: E402
from .report import SubstitutedSite, SubstitutionReport  # noqa: E402
from .shadow import BestCheckpoint, BestSubstituted, ShadowScore, shadow_evaluate  # noqa: E402
from .sites import find_sites  # noqa: E402
from .statistics import Statistics, observe  # noqa: E402
from .substitution import relu_substituted, to_relu_  # noqa: E402
from .successors import NoSuccessor, Successor, find_successors  # noqa: E402
from .targets import (  # noqa: E402
    HardnessCapWarning,
    SiteWeight,
    budget_targets,
    site_weights,
    suggest_targets,
)

__all__ = [
    "ActivationL1",
    "AllowedLoss",
    "BestCheckpoint",
    "BestSubstituted",
    "ConversionReport",
    "Distillation",
    "FoldingReport",
    "HardnessCapWarning",
    "HardnessScheduler",
    "Histogram",
    "InspectedSite",
    "InspectionReport",
    "LambdaGELU",
    "NoSuccessor",
    "Remaining",
    "Settled",
    "ShadowScore",
    "SiteWeight",
    "Statistics",
    "SubstitutedSite",
    "Substitution",
    "SubstitutionReport",
    "Successor",
    "Teacher",
    "budget_targets",
    "build_info",
    "cmake_prefix_path",
    "compile_mode",
    "convert_",
    "distillation_loss",
    "find_sites",
    "find_successors",
    "fold_hardness_",
    "gradient_reuse_count",
    "gradient_reuse_enabled",
    "init_hardness_",
    "inspect_sites",
    "keep_optimizer_",
    "lambda_gelu",
    "observe",
    "param_groups",
    "relu_gap",
    "relu_substituted",
    "set_compile_mode",
    "set_gradient_reuse",
    "shadow_evaluate",
    "site_weights",
    "softplus_lambda_gelu",
    "suggest_targets",
    "to_relu_",
]

__version__: str = _build_info.version

cmake_prefix_path: str = str(_Path(_C.__file__).resolve().parent / "share" / "cmake")
"""For CMake: -DCMAKE_PREFIX_PATH=$(python -c "import lambda_gelu; print(lambda_gelu.cmake_prefix_path)").

Beside the compiled module: an editable install keeps the Python files elsewhere.
"""


def build_info() -> dict[str, object]:
    """How this package was built, and what it uses on this machine.

    Returns:
        dict: ``version``; ``torch_version`` it was built against; ``compiler``; ``cuda_archs``, the CUDA architectures
        with kernels (``"80"``: machine code for 8.x from 8.0 on; ``"120+PTX"``: machine code, and PTX that newer GPUs
        compile; empty: this build has no CUDA kernels, and CUDA tensors take ATen operators); ``cuda_version`` of the
        nvcc that compiled them, else None; ``cpu_targets``, the instruction sets this machine can run, best first;
        ``cpu_target``, the one in use.
    """
    return {
        "version": _build_info.version,
        "torch_version": _build_info.torch_version,
        "compiler": _build_info.compiler,
        "cuda_archs": list(_build_info.cuda_archs),
        "cuda_version": _build_info.cuda_version,
        "cpu_targets": _C.cpu_targets(),
        "cpu_target": _C.cpu_target(),
    }
