"""Train an EB-JDAT variant as a transfer surrogate; a finished model of the same identity is copied instead."""

from __future__ import annotations

import argparse

from ebjdat import command, files
from ebjdat.config import SURROGATE_VARIANTS, load_params
from ebjdat.subject import Subject
from stages.training import train_with_curves


def main() -> None:
    """Make the surrogate of ``--variant``, or say in its folder that the profile uses none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=SURROGATE_VARIANTS, required=True)
    variant = parser.parse_args().variant
    params = load_params()
    subject = Subject(params.profile, "ebjdat", variant, params.seed)
    if variant in params.current.evaluation.transfer.surrogates:
        train_with_curves(params, subject, subject.surrogate_dir)
        return
    note = f"profiles.{params.profile}.evaluation.transfer.surrogates does not name {variant}\n"
    files.write_text(subject.surrogate_dir / "unused.txt", note)
    print(f"{subject.surrogate_dir}: {note}", end="")


if __name__ == "__main__":
    command.run(main)
