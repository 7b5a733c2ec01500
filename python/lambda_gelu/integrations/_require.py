"""Imports of packages that may be missing, with an error that says how to get them."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports `module`.

    Raises:
        ImportError: naming the extra of lambda-gelu that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.partition(".")[0] != error.name.partition(".")[0]:
            raise  # it is there, and something that it needs is missing
        raise ImportError(
            f"lambda_gelu.integrations.{extra} needs {module}: pip install 'lambda-gelu[{extra}]'", name=error.name
        ) from error
