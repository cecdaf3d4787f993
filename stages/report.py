"""Report pages: one of the current model, or of the baseline that --model names, and one that compares all runs."""

from __future__ import annotations

from ebjdat import command
from ebjdat.reporting import lookup, report
from stages.arguments import from_arguments


def main() -> None:
    """Write ``results/<profile>/<name>/report.html`` and ``results/<profile>/report.html``."""
    params, subject = from_arguments(__doc__)
    numbers = lookup.load_numbers(params)
    for path in report.write_reports(params, numbers, subject):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    command.run(main)
