"""Published numbers of EB-JDAT on CIFAR-10, as data: no published number stands anywhere else.

``SUPPLEMENT`` holds the tables and the text of the supplementary material, read first-hand.
``HEADLINE`` holds the main paper's numbers (CVPR 2026, arXiv:2505.19459) as public reading notes
give them: second-hand, and marked so wherever they are shown. Percentages are in [0, 100].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["robust", "transfer", "clean", "generation", "cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One published number.

    Attributes:
        table: where it stands (``Table 1``, ``Section 3``, ``Headline`` ...).
        row, column: its place there.
        value: as printed; the lower end where sources give a range.
        upper: the upper end of such a range.
        kind: what it measures, which decides what it may be compared with.
        model: name of our model that answers to the row; None where there is none here.
        stage, metric: our stage and metric key; see :meth:`key`.
        dataset: data set it was measured on.
        second_hand: taken from notes about the paper, not from the paper.
        instead: a metric that explains the number when the direct one does not meet it.
        note: what a reader must know to judge it.
    """

    table: str
    row: str
    column: str
    value: float
    upper: float | None = None
    kind: Kind = "robust"
    model: str | None = None
    stage: str = "autoattack"
    metric: str | None = None
    dataset: str = "cifar10"
    second_hand: bool = False
    instead: str | None = None
    note: str = ""

    def key(self, protocol: str) -> str | None:
        """Our metric key under a protocol."""
        return None if self.metric is None else _filled(self.metric, protocol)

    def instead_key(self, protocol: str) -> str | None:
        """The metric key that may explain the number."""
        return None if self.instead is None else _filled(self.instead, protocol)

    def text(self) -> str:
        """As printed."""
        return f"{self.value:.2f}" if self.upper is None else f"{self.value:.2f} to {self.upper:.2f}"


def _filled(template: str, protocol: str) -> str:
    return template.format(protocol=protocol, twin="released-" if protocol == "released" else "")


_OURS = "ebjdat-jempp"
_FAB_NOTE = (
    "the released code at 327ea16 clamps FAB to [0, 1] while its images live in [-1, 1]; "
    "a FAB that finds almost nothing leaves about the clean accuracy (inferred)"
)
_SURROGATE_NOTE = "the surrogate, its radius and the steps are not stated, so this cell is never called reproduced"
_AXIS_NOTE = "the printed radius counts on images in [-1, 1] and is most likely half of it in pixel units (inferred)"


def _table1() -> tuple[Published, ...]:
    cells = {
        "APGD-CE": (64.46, "{protocol}/apgd-ce"),
        "APGD-DLR": (65.29, "{protocol}/apgd-dlr"),
        "FAB": (90.52, "{protocol}/fab-t"),
        "SQUARE": (70.72, "{protocol}/square"),
    }
    return tuple(
        Published(
            table="Table 1",
            row="Ours",
            column=column,
            value=value,
            model=_OURS,
            metric=metric,
            instead="{protocol}/clean" if column == "FAB" else None,
            note=_FAB_NOTE if column == "FAB" else "",
        )
        for column, (value, metric) in cells.items()
    )


def _table2() -> tuple[Published, ...]:
    columns = ("PGD", "MI-FGSM", "VMI-FGSM", "VNI-FGSM")
    rows = {"TRADES": ("trades", (22.57, 21.68, 21.54, 21.97)), "Ours": (_OURS, (39.06, 38.33, 37.72, 39.19))}
    return tuple(
        Published(
            table="Table 2",
            row=row,
            column=column,
            value=value,
            kind="transfer",
            model=model,
            stage="transfer",
            metric=transfer_metric("{protocol}", "pgd_at", column.lower(), 5),
            note=_SURROGATE_NOTE,
        )
        for row, (model, values) in rows.items()
        for column, value in zip(columns, values, strict=True)
    )


def _table3() -> tuple[Published, ...]:
    multiples = {"4/255": "0.5", "8/255": "1", "16/255": "2", "32/255": "4"}
    found = []
    for (printed, multiple), apgd, eot in zip(
        multiples.items(), (80.28, 64.46, 30.63, 2.29), (80.97, 64.68, 34.24, 7.11), strict=True
    ):
        found.append(
            _cell3(f"APGD-CE, {printed}", apgd, "sweep", f"{{protocol}}/apgd-ce/radius-{multiple}/steps-20", _AXIS_NOTE)
        )
        found.append(
            _cell3(
                f"EOT-PGD, {printed}", eot, "eot", f"{{protocol}}/eot-pgd/plain/samples-2/radius-{multiple}", _AXIS_NOTE
            )
        )
    for steps, value in {1: 68.43, 10: 64.97, 20: 64.46, 50: 64.32}.items():
        name = f"APGD-CE, {steps} iteration{'s' if steps > 1 else ''}"
        found.append(_cell3(name, value, "sweep", f"{{protocol}}/apgd-ce/radius-1/steps-{steps}", ""))
    return tuple(found)


def _cell3(column: str, value: float, stage: str, metric: str, note: str) -> Published:
    return Published(
        table="Table 3", row="Ours", column=column, value=value, model=_OURS, stage=stage, metric=metric, note=note
    )


def transfer_metric(protocol: str, surrogate: str, attack: str, neighbours: int) -> str:
    """Metric key of a transfer attack; only VMI- and VNI-FGSM sample neighbours."""
    suffix = f"/neighbours-{neighbours}" if attack.startswith("v") else ""
    return f"{protocol}/transfer/{surrogate}/{attack}{suffix}"


FID = "generation/{twin}fid"
"""Fréchet distance on Inception features; ``{twin}`` names the released protocol's filter and reference."""

INCEPTION_SCORE = None
"""Inception Score needs the final layer of the network, which is not available here."""

_SADA = "ebjdat-sadajem"
SUPPLEMENT: tuple[Published, ...] = (
    *_table1(),
    *_table2(),
    *_table3(),
    Published(
        table="Section 2",
        row="JEM",
        column="FID",
        value=38.40,
        kind="generation",
        model="base-jem",
        stage="generate",
        metric=FID,
    ),
    Published(
        table="Section 2",
        row="EB-JDAT-JEM",
        column="FID",
        value=39.43,
        kind="generation",
        model="ebjdat-jem",
        stage="generate",
        metric=FID,
    ),
    Published(
        table="Section 3",
        row="EB-JDAT-SADAJEM",
        column="Robustness",
        value=68.76,
        model=_SADA,
        stage="clean",
        metric="{protocol}/pgd-20",
        note="this is the PGD-20 figure, not AutoAttack",
    ),
    Published(
        table="Section 3",
        row="EB-JDAT-SADAJEM",
        column="Accuracy",
        value=90.39,
        kind="clean",
        model=_SADA,
        stage="clean",
        metric="{protocol}/clean",
    ),
    Published(
        table="Section 3",
        row="EB-JDAT-SADAJEM",
        column="FID",
        value=27.42,
        kind="generation",
        model=_SADA,
        stage="generate",
        metric=FID,
    ),
)
"""Every number of the supplementary material."""

_COLUMNS: dict[str, tuple[Kind, str, str | None]] = {
    "clean": ("clean", "clean", "{protocol}/clean"),
    "PGD-20": ("robust", "clean", "{protocol}/pgd-20"),
    "AA": ("robust", "autoattack", "{protocol}/union"),
    "FID": ("generation", "generate", FID),
    "IS": ("generation", "generate", INCEPTION_SCORE),
    "hours (one RTX 3090)": ("cost", "train", None),
}
"""Column of the headline table: kind, our stage, our metric. The released code's AutoAttack is a union."""

Number = float | tuple[float, float]

_HEADLINE: dict[tuple[str, str | None], dict[str, Number]] = {
    ("EB-JDAT-JEM++", _OURS): {
        "clean": 90.30,
        "PGD-20": 64.88,
        "AA": 64.78,
        "FID": 39.67,
        "hours (one RTX 3090)": 31.66,
    },
    ("EB-JDAT-SADAJEM", _SADA): {
        "clean": (90.37, 90.39),
        "PGD-20": 68.76,
        "AA": (66.12, 66.30),
        "FID": 27.42,
        "IS": 8.05,
        "hours (one RTX 3090)": 66.64,
    },
    ("EB-JDAT-JEM", "ebjdat-jem"): {"FID": 39.43},
    ("JEM", "base-jem"): {"clean": 92.90, "AA": 4.28, "FID": 38.40, "IS": 8.76},
    ("JEM++", "base-jempp"): {"clean": 93.73, "AA": 41.06, "FID": 37.12, "IS": 8.29},
    ("SADAJEM", "base-sadajem"): {"clean": 96.03, "AA": 29.63, "FID": 17.38, "IS": 8.07},
    ("WEAT", None): {"clean": 83.36, "AA": 49.02, "FID": 30.74, "IS": 8.97},
    ("DHAT-CFA", None): {"clean": 84.49, "PGD-20": 62.38, "AA": 54.05},
}

_ABLATION: dict[str, dict[str, Number]] = {
    "EB-JDAT-JEM++, (w1, w2, w3) = (0, 0, 1)": {"clean": 88.95, "AA": 62.96, "FID": 173.53},
    "EB-JDAT-JEM++, (w1, w2, w3) = (0, 1, 1)": {"clean": 89.84, "AA": 64.69, "FID": 42.57},
    "EB-JDAT-JEM++, (w1, w2, w3) = (1, 0.5, 1)": {"clean": 90.39, "AA": 64.09, "FID": 40.12},
    "EB-JDAT-JEM++, (w1, w2, w3) = (1, 1, 1)": {"clean": 90.37, "AA": 64.61, "FID": 39.67},
}
_ABLATION_NOTES = {"EB-JDAT-JEM++, (w1, w2, w3) = (0, 0, 1)": "reported to collapse at epoch 41"}

_ELSEWHERE: dict[tuple[str, str], dict[str, Number]] = {
    ("EB-JDAT-SADAJEM", "cifar100"): {"clean": 68.32, "PGD-20": 38.42, "AA": 35.57},
    ("EB-JDAT-JEM++", "imagenet-subset"): {"clean": 63.02, "PGD-20": 34.50, "AA": 32.40},
}

_ONE_MODEL_NOTE = "exceeds APGD-CE alone of Table 1, which one model cannot do: different runs or checkpoints"


def _second_hand(
    table: str, row: str, numbers: dict[str, Number], *, model: str | None, dataset: str = "cifar10", note: str = ""
) -> list[Published]:
    found = []
    for column, number in numbers.items():
        value, upper = number if isinstance(number, tuple) else (number, None)
        kind, stage, metric = _COLUMNS[column]
        found.append(
            Published(
                table=table,
                row=row,
                column=column,
                value=value,
                upper=upper,
                kind=kind,
                model=model,
                stage=stage,
                metric=metric,
                dataset=dataset,
                second_hand=True,
                note=_ONE_MODEL_NOTE if (row, column) == ("EB-JDAT-JEM++", "AA") and dataset == "cifar10" else note,
            )
        )
    return found


HEADLINE: tuple[Published, ...] = (
    *(one for (row, model), n in _HEADLINE.items() for one in _second_hand("Headline", row, n, model=model)),
    *(
        one
        for row, n in _ABLATION.items()
        for one in _second_hand("Ablation", row, n, model=None, note=_ABLATION_NOTES.get(row, ""))
    ),
    *(
        one
        for (row, data), n in _ELSEWHERE.items()
        for one in _second_hand(f"Other data ({data})", row, n, model=None, dataset=data)
    ),
)
"""The main paper's numbers, second-hand."""

ALL: tuple[Published, ...] = SUPPLEMENT + HEADLINE

NOISE_FLOOR = 0.4
"""Points between runs of the same published recipe (inferred from its tables)."""


def in_table(table: str) -> tuple[Published, ...]:
    """The published numbers of one table or section."""
    return tuple(one for one in ALL if one.table == table)
