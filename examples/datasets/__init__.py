"""Small readers of the data sets that the examples train on. No file is trusted without its published checksum.

Each set is a module with functions named ``load``. To be imported from the root of the repository:
``from examples.datasets import fashion_mnist``.
"""

from .files import DATA_DIR_VARIABLE, CorruptDataError, MissingDataError, data_dir
from .splits import Labelled, Split, Text

__all__ = [
    "DATA_DIR_VARIABLE",
    "CorruptDataError",
    "Labelled",
    "MissingDataError",
    "Split",
    "Text",
    "data_dir",
]
