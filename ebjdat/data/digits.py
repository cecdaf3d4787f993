"""The 1,797 handwritten digits that scikit-learn carries: real data that needs no download.

8x8 grey images with levels 0..16, the test part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and
Kaynak, 1998). The arrays are checked against fixed hashes, so that a changed package is found here and not in a table.
"""

import hashlib

import numpy as np

from ebjdat.data.source import Source
from ebjdat.errors import UserError

LEVELS = 16
"""Grey value of white; images are stored as whole numbers 0..16."""
IMAGES_SHA256 = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
LABELS_SHA256 = "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"


def load_digits() -> Source:
    """The digits in scikit-learn's order.

    Returns:
        1,797 images (1, 8, 8) uint8 in 0..16 with labels 0..9, without a test set of their own.

    Raises:
        UserError: scikit-learn is missing or ships other arrays.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise UserError(f"the digits need scikit-learn ({error}): install the requirements") from None
    data = load()
    images, labels = data.images.astype(np.uint8), data.target.astype(np.uint8)
    for what, array, expected in (("images", images, IMAGES_SHA256), ("labels", labels, LABELS_SHA256)):
        actual = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        if actual != expected:
            raise UserError(
                f"scikit-learn's digits, {what}: expected sha256 {expected}, got {actual}: install the pinned version"
            )
    return Source("digits", images[:, None], labels, None, None, LEVELS)
