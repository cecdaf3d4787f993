"""Tables 1 to 3, the comparisons in the text, the claim ledger, metrics and plots."""

from __future__ import annotations

import argparse
from pathlib import Path

from ebjdat import command
from ebjdat.config import load_params
from ebjdat.reporting import claims, lookup, plots, readme, tables


def main() -> None:
    """Write everything that is derived from the selected profile's records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, action="append", default=[], help="also fill the tables in this page")
    arguments = parser.parse_args()
    params = load_params()
    for page in arguments.page:
        readme.read_page(page, params.profile)
    numbers, checks = lookup.load_with_checks(params)
    written = tables.write_tables(numbers, checks)
    written += claims.write_claims(params, numbers)
    written += plots.write_plots(numbers)
    for page in arguments.page:
        readme.fill_page(page, numbers)
    print(f"{len(written) + len(arguments.page)} files in {tables.tables_dir(params.profile)} and results/")


if __name__ == "__main__":
    command.run(main)
