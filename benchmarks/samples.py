"""A model's picture for the pages: test images, the same images attacked, chain starts and samples.

    python -m benchmarks.samples models/digits/ebjdat-jempp/0
    python -m benchmarks.samples models/fashion/ebjdat-jempp_energy/0 --radius 0.1 --out clothes.png

One column per class. Pixels are enlarged without smoothing, so that an 8x8 digit stays what it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import ebjdat
from ebjdat import command, files
from ebjdat.attacks.linf import PGD
from ebjdat.data.prepared import load_prepared
from ebjdat.protocols import as_fraction

SIDE, MARGIN, LABELS = 64, 4, 170
"""Screen pixels of an image, at most, between images, and for the words on the left."""


def rows(folder: Path, radius: float) -> dict[str, torch.Tensor]:
    """Ten images per row, (10,C,H,W) in [0, 1]; sample and start of a column belong to the same chain."""
    model = ebjdat.load(folder)
    prepared = load_prepared(Path("data") / folder.parts[-3])
    x = torch.stack([prepared.x_test[prepared.y_test == label][0] for label in range(10)])
    y = torch.arange(10)
    pgd = PGD(eps=radius, steps=20, step=radius / 4, random_start=True)
    attacked = pgd(model, x, y, torch.Generator().manual_seed(0))
    found = {"test image": x, f"attacked, {as_fraction(radius)}": attacked}
    for name, steps in (("start of a chain", 0), ("sample", None)):
        found[name] = model.sample(10, y, torch.Generator().manual_seed(0), steps)
    return found


def draw(images: dict[str, torch.Tensor]) -> Image.Image:
    """One line of enlarged images per entry, with its name."""
    size = next(iter(images.values())).shape[-1]
    scale = max(1, SIDE // size)
    height = scale * size + MARGIN
    canvas = Image.new("RGB", (LABELS + 10 * height, len(images) * height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(18)
    for row, (name, batch) in enumerate(images.items()):
        pen.text((4, row * height + height // 2), name, fill="black", font=font, anchor="lm")
        pixels = (batch.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for column, image in enumerate(pixels):
            large = np.repeat(np.repeat(image, scale, 0), scale, 1)
            tile = Image.fromarray(large.squeeze(-1) if large.shape[-1] == 1 else large)
            canvas.paste(tile, (LABELS + column * height, row * height))
    return canvas


def main() -> None:
    """Draw a model's picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--radius", type=float, default=32 / 255, help="of the attack, pixel units")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/samples-digits.png"))
    arguments = parser.parse_args()
    with files.atomic(arguments.out) as handle:
        draw(rows(arguments.folder, arguments.radius)).save(handle, "PNG", optimize=True)


if __name__ == "__main__":
    command.run(main)
