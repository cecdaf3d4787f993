"""Tables, figures, claims, metrics, plots and the report page, from the numbers that the stage ``log`` left."""

import argparse
from pathlib import Path

from ebjdat import command


def main() -> None:
    """Write everything that is derived from the selected profile's records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, action="append", default=[], help="also fill the tables in this page")
    parser.add_argument("--profile", help="tables and pages of another profile, and nothing else")
    arguments = parser.parse_args()

    from ebjdat import files
    from ebjdat.config import load_params
    from ebjdat.results import claims, figures, frame, page, plots, tables

    params = load_params(profile=arguments.profile)
    for path in arguments.page:
        tables.read_page(path, params.profile)
    results = frame.load(params)
    written = tables.write_tables(results)
    figures.write_figures(results)
    for path in arguments.page:
        tables.fill_page(path, results)
    if arguments.profile is None:
        claims.write_claims(results)
        plots.write_plots(results)
        files.write_json(tables.METRICS, tables.headline(results))
        page.write_page(results)
    left_out = f", {len(results.outdated)} outdated ones left out" if results.outdated else ""
    also = "" if arguments.profile else f"; results/claims.md, results/{params.profile}/report.html"
    print(f"{params.profile}: {len(written)} tables of {len(results.records)} records{left_out}{also}")


if __name__ == "__main__":
    command.run(main)
