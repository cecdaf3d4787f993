"""Comparing distributions of one number per image: gaps, overlap, detection, calibration. NumPy only."""

from typing import Any

import numpy as np

BINS = 20


def gap(values: np.ndarray, reference: np.ndarray) -> float:
    """Mean of ``values`` minus mean of ``reference``, with its sign."""
    return float(values.mean() - reference.mean())


def common_edges(*samples: np.ndarray) -> np.ndarray:
    """Inner edges (BINS - 1,) of bins for several samples.

    They are equally wide between the 0.5 and 99.5 % quantiles of the pooled values, the outer two open, so
    that one extreme value cannot put everything else into one bin.
    """
    low, high = np.quantile(np.concatenate(samples), [0.005, 0.995])
    return np.linspace(low, high, BINS + 1)[1:-1]


def overlap(*samples: np.ndarray) -> float:
    """Overlap coefficient in [0, 1]: the common area of the histograms of two or more samples."""
    edges = common_edges(*samples)
    shares = [np.bincount(np.searchsorted(edges, sample), minlength=len(edges) + 1) / len(sample) for sample in samples]
    return min(1.0, float(np.min(shares, axis=0).sum()))


def auroc(higher: np.ndarray, lower: np.ndarray) -> float:
    """Probability that a value of ``higher`` exceeds one of ``lower``, ties counted half."""
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, side="left")
    upto = np.searchsorted(ordered, higher, side="right")
    return float((below + upto).mean() / (2 * len(lower)))


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> dict[str, np.ndarray]:
    """Images, mean confidence and accuracy per equally wide bin of confidence in [0, 1]; empty bins are 0."""
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    filled = np.maximum(count, 1)
    return {
        "count": count,
        "confidence": np.bincount(place, weights=confidence, minlength=bins) / filled,
        "accuracy": np.bincount(place, weights=right.astype(float), minlength=bins) / filled,
    }


def expected_calibration_error(table: dict[str, Any]) -> float:
    """ECE (Guo et al., ICML 2017, arXiv:1706.04599) from :func:`reliability`, in [0, 1]."""
    weights = table["count"] / table["count"].sum()
    return float((weights * np.abs(table["confidence"] - table["accuracy"])).sum())
