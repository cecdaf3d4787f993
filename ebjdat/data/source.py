"""A data set as its owner publishes it, before any split."""

from dataclasses import dataclass

import numpy as np

CHANNELS = {"digits": 1, "fashion": 1, "cifar10": 3}
"""Of the images of each data set."""


@dataclass(frozen=True)
class Source:
    """Images and labels of one data set.

    Attributes:
        name: "digits", "cifar10" or "fashion".
        images: (N, C, H, W) uint8 in 0..levels, from which train and validation are drawn, and the
            test split too where ``test_images`` is None.
        labels: (N,) uint8.
        test_images, test_labels: the official test set, or None.
        levels: value of white.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray | None
    test_labels: np.ndarray | None
    levels: int
