"""Generation: twins of the protocol, controls beside them, and the pictures."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ebjdat.config import Data, Generation, Variant
from ebjdat.data.digits import load_digits
from ebjdat.data.prepared import Prepared, load_prepared, save_prepared
from ebjdat.errors import AuditError, UserError
from ebjdat.evaluation.generation import Samples, draw_samples, measure, most_confident, nearest_distances
from ebjdat.evaluation.pictures import draw_chains, draw_grid
from ebjdat.evaluation.reference import Reference, build_reference, load_reference
from ebjdat.evaluation.samples import fresh, read_buffer
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import new_model
from ebjdat.statistics import Result
from tests.small_runs import TINY
from tests.synthetic import PARAMS

CPU = torch.device("cpu")
SETTINGS = Generation(samples=80, features="classifier", chain_steps=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("data")
    settings = Data(dataset="digits", folder=None, split_seed=0, train=500, validation=100, test=150)
    save_prepared(folder, load_digits(), settings)
    return load_prepared(folder)


@pytest.fixture(scope="module")
def folder(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference")
    build_reference(path, data, SETTINGS, CPU)
    return path


@pytest.fixture(scope="module")
def reference(data: Prepared, folder: Path) -> Reference:
    return load_reference(folder, data, SETTINGS, CPU)


@lru_cache(maxsize=1)
def model() -> EnergyModel:
    """An untrained network; what generation does around it does not depend on its training."""
    return new_model(TINY, seed=0).eval().requires_grad_(False)


def recipe(name: str) -> Variant:
    return PARAMS.variants[name]


def drawn(data: Prepared, name: str = "jempp", seed: int = 0) -> Samples:
    return draw_samples(model(), recipe(name), data, data.x_train[:100], SETTINGS, seed)


def pretend(data: Prepared, images: Tensor, labels: Tensor, buffer: Tensor | None = None) -> Samples:
    """Samples of a made-up model that generates ``images``."""
    samples = drawn(data)
    return dataclasses.replace(
        samples,
        fresh=images[: SETTINGS.samples],
        conditional=images,
        labels=labels,
        conditional_start=images.flip(0),
        buffer=images if buffer is None else buffer,
    )


def measured(data: Prepared, reference: Reference, samples: Samples) -> Result:
    return measure(model(), samples, data, reference, seed=0)


# Samples


@pytest.mark.parametrize("name", ["jem", "jempp", "sadajem"])
def test_samples_are_images_and_depend_on_the_seed_only(data: Prepared, name: str) -> None:
    first, again, other = drawn(data, name), drawn(data, name), drawn(data, name, seed=1)
    for field in ("fresh", "start", "conditional", "conditional_start", "snapshots"):
        images = getattr(first, field)
        assert torch.equal(images, getattr(again, field)) and not torch.equal(images, getattr(other, field))
        assert float(images.min()) >= 0.0 and float(images.max()) <= 1.0
    assert len(first.fresh) == len(first.start) == SETTINGS.samples
    assert torch.bincount(first.labels).tolist() == [8] * 10


def test_snapshots_run_from_the_start_to_the_last_step(data: Prepared) -> None:
    samples = drawn(data)
    assert samples.snapshot_steps == (0, 1, 2, 3)
    assert len(samples.snapshots) == 4 and not torch.equal(samples.snapshots[0], samples.snapshots[-1])


def test_fresh_chains_are_the_same_images_in_every_stage(data: Prepared) -> None:
    again = fresh(model(), recipe("jempp"), data, SETTINGS.samples, SETTINGS.chain_steps, 0)
    assert torch.equal(drawn(data).fresh, again)


def test_copies_are_looked_for_among_rounded_images_as_they_are_measured(data: Prepared, reference: Reference) -> None:
    images, labels = data.x_test[:80] * 0.9 + 0.0137, data.y_test[:80]
    rounded = (images * 255.0).round() / 255.0
    pair = [measured(data, reference, pretend(data, found, labels)).values for found in (images, rounded)]
    name = "generation/nearest-train/samples"
    assert pair[0][name] == pytest.approx(pair[1][name], abs=1e-6)


def test_a_buffer_of_unclamped_chains_is_clamped(data: Prepared) -> None:
    wide = data.x_train[:100] * 3.0 - 1.0
    samples = draw_samples(model(), recipe("jem"), data, wide, SETTINGS, 0)
    assert torch.equal(samples.buffer, wide.clamp(0.0, 1.0))


def test_a_missing_damaged_or_foreign_buffer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "buffer.npz"
    with pytest.raises(UserError, match=r"buffer\.npz is missing"):
        read_buffer(path, (1, 8, 8))
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"is damaged .* train the model .* again"):
        read_buffer(path, (1, 8, 8))
    np.savez(path, images=np.zeros((3, 3, 32, 32), np.float32))
    with pytest.raises(UserError, match="expected float32 images"):
        read_buffer(path, (1, 8, 8))
    np.savez(path, images=np.full((3, 1, 8, 8), np.nan, np.float32))
    with pytest.raises(UserError, match="NaN or infinite"):
        read_buffer(path, (1, 8, 8))


# The released protocol's filter


class _Readout(nn.Module):
    """Logits written into the image itself: class in pixel 0, its logit in pixel 1."""

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        flat = ((x + 1.0) / 2.0).flatten(1)
        return torch.nn.functional.one_hot((flat[:, 0] * 10).round().long(), 10) * (self.height * flat[:, 1:2])


def test_the_filter_keeps_the_most_confident_nine_tenths_of_each_predicted_class() -> None:
    predicted = torch.tensor([0] * 10 + [3] * 20 + [9])
    confidence = torch.rand(31, generator=torch.Generator().manual_seed(0))
    images = torch.stack([predicted / 10, confidence], 1).view(31, 1, 1, 2)
    kept = most_confident(EnergyModel(_Readout()), images, batch_size=7)
    assert [int((predicted[kept] == label).sum()) for label in (0, 3, 9)] == [9, 18, 1]
    for label in (0, 3):
        dropped = sorted(set((predicted == label).nonzero().flatten().tolist()) - set(kept.tolist()))
        lowest_kept = confidence[kept][predicted[kept] == label].min()
        assert float(confidence[dropped].max()) <= float(lowest_kept)


# Nearest training images


def test_nearest_distances_are_those_of_a_full_search(data: Prepared) -> None:
    images, train = data.x_test[:20], data.x_train[:60]
    expected = [min(float((x - t).norm()) for t in train) for x in images]
    assert nearest_distances(images, train, CPU, batch_size=7) == pytest.approx(expected, abs=1e-4)


def test_copies_of_training_images_are_seen_as_copies(data: Prepared, reference: Reference) -> None:
    values = measured(data, reference, pretend(data, data.x_train[:100], data.y_train[:100])).values
    assert values["generation/nearest-train/samples"] < 0.05 < values["generation/nearest-train/test"]


# The numbers


def test_real_images_are_at_the_floor_and_noise_is_far_from_it(data: Prepared, reference: Reference) -> None:
    key = "generation/classifier-frechet"
    real = measured(data, reference, pretend(data, data.x_val, data.y_val)).values
    noise = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    far = measured(data, reference, pretend(data, noise, data.y_val)).values
    tests = [{name: value for name, value in found.items() if "/test-" in name} for found in (real, far)]
    assert tests[0] == tests[1] and "generation/test-classifier-kernel" in tests[0], "measured twice"
    assert far[key] > 10 * real[key] > 0
    assert far["generation/released-classifier-frechet"] > 10 * real["generation/released-classifier-frechet"]
    assert far["generation/classifier-kernel"] > 10 * abs(real["generation/classifier-kernel"])


def test_the_twins_are_labelled_with_filter_reference_and_counts(data: Prepared, reference: Reference) -> None:
    result = measured(data, reference, drawn(data))
    standard, released = result.settings["standard"], result.settings["released"]
    assert (standard["samples"], standard["filter"], standard["reference_images"]) == (80, "none", 500)
    assert released["samples"] == result.values["generation/released-n"] and 90 <= released["samples"] < 100
    assert released["reference_images"] == 750 and "90%" in released["filter"]
    assert released["levels"] == "floored"
    assert result.settings["features"]["sha256"] == reference.extractor.sha256
    assert "inception" not in " ".join(result.values) and "fid" not in " ".join(result.values)
    assert result.warnings["generation/inception-score"]


def test_agreement_is_that_of_the_independent_classifier(data: Prepared, reference: Reference) -> None:
    right = measured(data, reference, pretend(data, data.x_val, data.y_val)).rates["generation/agreement"]
    shifted = measured(data, reference, pretend(data, data.x_val, (data.y_val + 1) % 10)).rates["generation/agreement"]
    assert right.accuracy > 0.85 and shifted.accuracy < 0.15


def test_fewer_samples_than_features_and_unequal_n_are_warned_of(data: Prepared, reference: Reference) -> None:
    samples = drawn(data)
    few = dataclasses.replace(samples, fresh=samples.fresh[:50], start=samples.start[:50], buffer=samples.buffer[:40])
    warnings = measured(data, reference, few).warnings
    assert warnings["generation/classifier-frechet"] == [
        "50 images for 64 features: the covariance is singular, compare at equal n only"
    ]
    assert any("40 images instead of 50" in line for line in warnings["generation/buffer-classifier-frechet"])
    assert "generation/classifier-frechet" not in measured(data, reference, samples).warnings


def test_samples_outside_the_image_range_stop_the_stage(data: Prepared, reference: Reference) -> None:
    broken = dataclasses.replace(drawn(data), fresh=data.x_train[:80] * 2.0 - 1.0)
    with pytest.raises(AuditError, match="NaN or outside"):
        measured(data, reference, broken)


# The reference


def test_the_reference_holds_the_floor_at_the_number_of_samples(folder: Path, reference: Reference) -> None:
    assert reference.floor_images == 80
    assert (reference.train.n, reference.everything.n) == (500, 750)
    assert reference.floor["classifier-frechet"] > 0
    assert reference.clean.n == 150


def test_a_reference_of_other_data_or_features_is_refused(folder: Path, data: Prepared) -> None:
    with pytest.raises(UserError, match="belongs to schema, data, features"):
        load_reference(folder, dataclasses.replace(data, digest="other"), SETTINGS, CPU)
    with pytest.raises(UserError, match="'inception'"):
        load_reference(folder, data, SETTINGS.model_copy(update={"features": "inception"}), CPU)


def test_a_reference_with_another_classifier_or_no_statistics_is_refused(
    folder: Path, data: Prepared, tmp_path: Path
) -> None:
    for name in ("manifest.json", "statistics.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    other = torch.load(folder / "classifier.pt", weights_only=True)
    other["state"]["head.bias"] += 1.0
    torch.save(other, tmp_path / "classifier.pt")
    with pytest.raises(UserError, match="made with features of sha256"):
        load_reference(tmp_path, data, SETTINGS, CPU)
    (tmp_path / "statistics.npz").write_bytes(b"half")
    with pytest.raises(UserError, match=r"statistics\.npz is damaged"):
        load_reference(tmp_path, data, SETTINGS, CPU)


# The pictures


def test_pictures_are_written_as_the_same_png_each_time(data: Prepared, tmp_path: Path) -> None:
    samples = drawn(data)
    for name in ("one", "two"):
        draw_grid(tmp_path / name / "samples.png", samples, "model")
        draw_chains(tmp_path / name / "chains.png", samples, "model")
    for file in ("samples.png", "chains.png"):
        content = (tmp_path / "one" / file).read_bytes()
        assert content.startswith(b"\x89PNG") and content == (tmp_path / "two" / file).read_bytes()


def test_colour_samples_are_drawn_in_colour(data: Prepared, tmp_path: Path) -> None:
    samples = drawn(data)
    red = samples.conditional * torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    draw_grid(tmp_path / "red.png", dataclasses.replace(samples, conditional=red), "model")
    from PIL import Image

    with Image.open(tmp_path / "red.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert ((pixels[:, 0] > 200) & (pixels[:, 1] < 50) & (pixels[:, 2] < 50)).sum() > 500
