"""Protocols, cell by cell."""

from __future__ import annotations

import dataclasses

import pytest

from ebjdat.protocols import CODE_NOISE, PROTOCOLS, RELEASED, STANDARD, as_fraction

CIFAR = 8 / 255


def test_the_released_radius_is_half_of_the_standard_one() -> None:
    assert STANDARD.radius(CIFAR) == CIFAR
    assert RELEASED.radius(CIFAR) == 4 / 255


def test_only_released_adds_input_noise_half_of_what_labelled_images_had_in_network_scale() -> None:
    assert [STANDARD.input_noise(noise) for noise in (0.03, 0.0)] == [0.0, 0.0]
    assert [RELEASED.input_noise(noise) for noise in (0.03, 0.0)] == [CODE_NOISE, 0.0] == [0.015, 0.0]


def test_table_1_runs_the_attacks_and_steps_of_each_protocol() -> None:
    cells = {
        protocol.name: [(cell.attack, cell.steps, cell.targets) for cell in protocol.table1.alone]
        for protocol in PROTOCOLS.values()
    }
    assert cells["standard"] == [
        ("apgd-ce", 100, 0), ("apgd-dlr", 100, 0), ("apgd-t", 100, 9), ("fab-t", 100, 9), ("square", 5000, 0),
    ]  # fmt: skip
    assert cells["released"] == [("apgd-ce", 20, 0), ("apgd-dlr", 20, 0), ("fab-t", 20, 9), ("square", 5000, 0)]
    assert STANDARD.table1.cascade and not RELEASED.table1.cascade
    assert (STANDARD.table1.without_effect, RELEASED.table1.without_effect) == ((), ("fab-t",))


def test_table_2_takes_ten_steps_of_a_quarter_radius() -> None:
    for protocol, neighbours in ((STANDARD, (5, 20)), (RELEASED, (5,))):
        recipe = protocol.transfer
        assert recipe.attacks == ("pgd", "mi-fgsm", "vmi-fgsm", "vni-fgsm")
        assert (recipe.steps, recipe.step, recipe.decay, recipe.beta) == (10, 0.25, 1.0, 1.5)
        assert recipe.neighbours == neighbours


def test_table_3_sweeps_radius_and_iterations() -> None:
    for protocol, steps in ((STANDARD, (20, 100)), (RELEASED, (20,))):
        assert protocol.sweep.radii == (0.5, 1.0, 2.0, 4.0)
        assert protocol.sweep.radii_steps == steps
        assert protocol.sweep.iterations == (1, 10, 20, 50)
        assert protocol.sweep.unbounded == 1.0


def test_eot_takes_twenty_steps_of_an_eighth_radius_and_noise_inside_only_under_standard() -> None:
    for protocol in (STANDARD, RELEASED):
        assert (protocol.eot.radii, protocol.eot.steps, protocol.eot.step) == ((0.5, 1.0, 2.0, 4.0), 20, 0.125)
    assert [(cell.noise, cell.samples) for cell in STANDARD.eot.cells] == [("plain", 2), ("noise", 2), ("noise", 20)]
    assert [(cell.noise, cell.samples) for cell in RELEASED.eot.cells] == [("plain", 2)]


def test_pgd_20_steps_a_quarter_of_the_protocols_own_radius_and_an_eighth_under_released() -> None:
    assert [(p.pgd.steps, p.pgd.step) for p in PROTOCOLS.values()] == [(20, 0.25), (20, 0.125)]


def test_a_protocol_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        STANDARD.scale = 2.0  # type: ignore[misc]


def test_a_radius_is_written_as_a_fraction() -> None:
    assert [as_fraction(radius / 255) for radius in (1, 4.5, 32)] == ["1/255", "4.5/255", "32/255"]
