"""What each cell of Tables 1 to 3 runs under each protocol, from the protocols' own definition."""

from __future__ import annotations

from collections.abc import Callable

from ebjdat.protocols import PROTOCOLS, AutoAttackCell, Protocol, as_fraction
from ebjdat.reporting.layout import Column, Entry, Row, Table
from ebjdat.reporting.lookup import Numbers


def settings_table(numbers: Numbers) -> Table:
    """Attacks, steps, step sizes, radii and noise as rows, the protocols as columns."""
    evaluation = numbers.profile.evaluation
    rows: dict[str, Callable[[Protocol], str]] = {
        "radius r": lambda p: as_fraction(p.radius(evaluation.radius)),
        "input noise": _input_noise,
        "PGD-20": lambda p: f"{p.pgd.steps} steps of {p.pgd.step:g} r, one random start",
        "Table 1, each attack alone": lambda p: "; ".join(map(_alone, p.table1.alone)),
        "Table 1, cascade": lambda p: "AutoAttack, version standard" if p.table1.cascade else "none, but their union",
        "Table 2": _transfer,
        "Table 3, APGD-CE": _sweep,
        "Table 3, EOT-PGD": _eot,
    }
    body = tuple(Row(name, tuple(Entry(show(p)) for p in PROTOCOLS.values())) for name, show in rows.items())
    text = (
        f"Profile {numbers.params.profile}, pixel units. n: {evaluation.clean.images} images for PGD-20, "
        f"{evaluation.autoattack.images} for AutoAttack in slices of {evaluation.autoattack.slice}, "
        f"{evaluation.transfer.images} for transfer, {evaluation.sweep.images} for APGD-CE, {evaluation.eot.images} "
        "for EOT-PGD, always the first of the test split. Attacks run in float32, from seeds that do not depend on "
        "that of the training."
    )
    return Table("settings", "What each cell runs", text, "Cell", tuple(Column(name) for name in PROTOCOLS), body)


def _input_noise(protocol: Protocol) -> str:
    if not protocol.noisy_variants:
        return "none"
    return f"sigma {protocol.noise:g}, one fixed draw, for {' and '.join(protocol.noisy_variants)}; else none"


def _alone(cell: AutoAttackCell) -> str:
    unit = "queries" if cell.attack == "square" else "steps"
    targets = f", {cell.targets} targets" if cell.targets else ""
    return f"{cell.attack.upper()}: {cell.steps} {unit}{targets}"


def _transfer(protocol: Protocol) -> str:
    recipe = protocol.transfer
    return (
        f"{', '.join(name.upper() for name in recipe.attacks)}: {recipe.steps} steps of {recipe.step:g} r; decay "
        f"{recipe.decay:g}; VMI and VNI: {' or '.join(map(str, recipe.neighbours))} neighbours within {recipe.beta:g} r"
    )


def _sweep(protocol: Protocol) -> str:
    sweep = protocol.sweep
    return (
        f"{_radii(sweep.radii)}, {' and '.join(map(str, sweep.radii_steps))} steps; "
        f"{', '.join(map(str, sweep.iterations))} steps at r; one restart"
    )


def _eot(protocol: Protocol) -> str:
    eot = protocol.eot
    cells = ", ".join(
        f"{cell.samples} samples" + (f" with noise of sigma {eot.sigma:g} inside" if cell.noise == "noise" else "")
        for cell in eot.cells
    )
    return f"{_radii(eot.radii)}; {eot.steps} steps of {eot.step:g} r at every radius; {cells}"


def _radii(multiples: tuple[float, ...]) -> str:
    return f"{', '.join(f'{multiple:g}' for multiple in multiples)} r"
