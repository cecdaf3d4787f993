"""Records into MLflow; tables, claims, metrics and plots from it."""

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
    from ebjdat.record import read_records
    from ebjdat.results import claims, figures, frame, plots, tables

    params = load_params(profile=arguments.profile)
    for page in arguments.page:
        tables.read_page(page, params.profile)
    results = frame.load(params, pictures=figures.model_figures)
    written = tables.write_tables(results)
    figures.write_figures(results)
    for page in arguments.page:
        tables.fill_page(page, results)
    if arguments.profile is None:
        claims.write_claims(results)
        plots.write_plots(results)
        files.write_json(tables.METRICS, tables.headline(results))
        # Last, for DVC: what was logged and shown.
        digest = files.digest(list(read_records(params.profile)), 64)
        files.write_json(Path("results", params.profile, "logged.json"), {"records": digest})
    left_out = f", {len(results.outdated)} outdated ones left out" if results.outdated else ""
    also = "" if arguments.profile else "; results/claims.md"
    print(f"{params.profile}: {len(written)} tables of {len(results.records)} records{left_out}{also}")


if __name__ == "__main__":
    command.run(main)
