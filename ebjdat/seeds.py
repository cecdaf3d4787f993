"""Seeds of random streams."""

import hashlib


def derive(seed: int, *parts: object) -> int:
    """A 63-bit seed from ``seed`` and any labels, stable across machines and Python versions."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
