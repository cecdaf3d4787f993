"""The report page of the selected profile, ``results/<profile>/report.html``: one file that works offline."""

from ebjdat import command


def main() -> None:
    """Write the page from the record files, the tables, and what else is on this machine."""
    command.no_arguments(__doc__)

    from ebjdat.config import load_params
    from ebjdat.results import frame, page

    path = page.write_page(frame.load(load_params(), store=False))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    command.run(main)
