"""Masking report: the indicators of gradient masking, decided by the records of the other stages."""

from __future__ import annotations

from ebjdat import command
from ebjdat.evaluation import masking
from ebjdat.protocols import PROTOCOLS
from ebjdat.reporting import records
from ebjdat.subject import MASKING_INPUTS
from stages.arguments import from_arguments


def main() -> None:
    """Decide from the model's records, write the verdicts, and say which indicator failed."""
    params, subject = from_arguments(__doc__)
    found = [records.read_todays(subject, params, stage) for stage in MASKING_INPUTS]
    rates = {name: rate for record in reversed(found) for name, rate in records.rates_of(record).items()}
    values = {name: value for record in found for name, value in record["values"].items()}
    result = masking.evaluate(rates, values, tuple(PROTOCOLS))
    records.write_record(subject, params, "masking", result)
    failed = [name for name, audit in result.audits.items() if not audit["passed"]]
    open_ones = sum(audit["verdict"] == "not rejected" for audit in result.audits.values())
    verdict = f"failed: {', '.join(failed)}" if failed else "none failed"
    print(f"{subject.run_name}: {len(result.audits)} indicators, {verdict}, {open_ones} not rejected at this n")


if __name__ == "__main__":
    command.run(main)
