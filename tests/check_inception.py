"""On demand: the real Inception features on 2,000 real CIFAR-10 images (minutes, needs the data and the weights).

    python -m tests.check_inception [images]

Test images against themselves must be at about 0, against as many train images far below noise (a
quarter as many, its distance is ten times larger), and all must equal a direct float64 computation
within 1e-3.
"""

from __future__ import annotations

import sys

import torch

from ebjdat.data.cifar10 import load_cifar10
from ebjdat.evaluation.features import ImageSet, Statistics, frechet_distance, inception_extractor, kernel_distance
from ebjdat.progress import Progress
from tests.test_features import direct_frechet


def main(images: int = 2000) -> int:
    """Measure, print, and return the number of broken expectations."""
    source = load_cifar10()
    assert source.test_images is not None
    extractor = inception_extractor(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    generator = torch.Generator().manual_seed(0)
    sets = {
        "test": torch.from_numpy(source.test_images[:images].copy()),
        "train": torch.from_numpy(source.images[:images].copy()),
        "noise": torch.randint(0, 256, (images // 4, 3, 32, 32), dtype=torch.uint8, generator=generator),
    }
    features = {}
    with Progress(2 * images + images // 4, "inception features", unit="image") as progress:
        for name, found in sets.items():
            parts = []
            for part in found.split(100):
                parts.append(extractor.features(ImageSet(part)))
                progress.advance(len(part))
            features[name] = torch.cat(parts)
    distances, broken = {}, 0
    for name, found in features.items():
        ours = frechet_distance(Statistics.of(features["test"]), Statistics.of(found))
        direct = direct_frechet(features["test"], found)
        distances[name] = ours
        broken += abs(ours - direct) > 1e-3
        kernel = kernel_distance(features["test"], found)[0]
        print(f"{images} test images against {name}: FID {ours:.6f}, direct {direct:.6f}, KID {kernel:.6f}")
    broken += abs(distances["test"]) > 1e-3
    broken += not distances["train"] < distances["noise"] / 3
    print("as expected" if not broken else f"{broken} expectations broken")
    return broken


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
