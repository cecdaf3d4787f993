"""Records into MLflow, with pictures of their runs; back come the numbers that tables are made of."""

from pathlib import Path

from ebjdat import command


def main() -> None:
    """Log what the store lacks of the selected profile, and write ``results/<profile>/frame.csv``."""
    command.no_arguments(__doc__)

    from ebjdat import drawing, tracking
    from ebjdat.config import load_params
    from ebjdat.record import read_records, run_of

    profile = load_params().profile
    records = list(read_records(profile))
    Path("results", profile, "pictures").mkdir(parents=True, exist_ok=True)
    for run in sorted({run_of(record) for record in records}):
        drawing.write_pictures(run)
    new = tracking.log_frame(profile, records)
    if new is not None:
        print(f"{profile}: {new} of {len(records)} records were new to MLflow")


if __name__ == "__main__":
    command.run(main)
