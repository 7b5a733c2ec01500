"""The check that the running torch is the one this package was built against."""

from __future__ import annotations


def check_torch_version(built: str, running: str) -> None:
    """Raises ImportError unless both versions have the same major and minor number.

    libtorch has no stable C++ ABI across minor versions: without this check a mismatch shows as an undefined symbol.
    """
    if _major_minor(built) != _major_minor(running):
        raise ImportError(
            f"lambda_gelu was built against torch {built}, but torch {running} is installed; rebuild it for this torch "
            "with: pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps lambda-gelu"
        )


def _major_minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])
