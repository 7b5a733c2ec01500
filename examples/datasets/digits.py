"""scikit-learn's handwritten digits."""

from __future__ import annotations

import torch

from .files import MissingDataError
from .splits import Labelled


def load() -> Labelled:
    """1797 images of 8 x 8 pixels, in [-1, 1]. Every second one is the test, as in examples/python/digits.py.

    There are too few to hold some out, so the training images decide. The test has the writers of the training images.

    Raises:
        MissingDataError: without scikit-learn, which brings them.
    """
    try:
        from sklearn import datasets  # noqa: PLC0415 - the error names what to install
    except ImportError as error:
        raise MissingDataError("the digits are in scikit-learn: pip install 'lambda-gelu[demo]'") from error
    data = datasets.load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 8 - 1, torch.tensor(data.target)
    train, test = ((x[start::2].contiguous(), y[start::2].contiguous()) for start in (0, 1))
    return Labelled(train, train, test)
