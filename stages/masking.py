"""Masking report: the indicators of gradient masking, decided by the records of the other stages."""

from ebjdat import command
from ebjdat.config import MASKING_INPUTS
from ebjdat.errors import UserError
from ebjdat.evaluation import masking
from ebjdat.protocols import PROTOCOLS
from ebjdat.record import rates_of, read_own, write_record
from stages.arguments import setup_from_arguments


def main() -> None:
    """Decide from the run's records, write the verdicts, and say which indicator failed."""
    setup = setup_from_arguments(__doc__)
    found = [read_own(setup, stage) for stage in MASKING_INPUTS]
    data = {record["data"] for record in found}
    if len(data) > 1:
        raise UserError(f"the records of {setup.run} are about several data sets: run its stages again")
    rates = {name: rate for record in reversed(found) for name, rate in rates_of(record).items()}
    values = {name: value for record in found for name, value in record["values"].items()}
    result = masking.evaluate(rates, values, tuple(PROTOCOLS))
    fingerprint = {key: found[0]["params"][key] for key in ("fingerprint",) if key in found[0]["params"]}
    write_record(setup, "masking", result, data=data.pop(), params=fingerprint)
    failed = [name for name, audit in result.audits.items() if not audit["passed"]]
    open_ones = sum(audit["verdict"] == "not rejected" for audit in result.audits.values())
    verdict = f"failed: {', '.join(failed)}" if failed else "none failed"
    print(f"{setup.run}: {len(result.audits)} indicators, {verdict}, {open_ones} not rejected at this n")


if __name__ == "__main__":
    command.run(main)
