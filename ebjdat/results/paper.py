"""The paper's tables in the paper's form: its rows, columns and names, one number per cell, as Markdown and LaTeX."""

import functools
import re
from typing import Any

import pandas as pd

from ebjdat.protocols import PROTOCOLS, Protocol
from ebjdat.results import names
from ebjdat.results.cells import Table, pivot, short
from ebjdat.results.extended import ATTACKS, distances, table3_columns, transfer_metric
from ebjdat.results.frame import Results
from ebjdat.results.names import baselines, by_variant, display_name
from ebjdat.results.published import Claim, in_table


@functools.lru_cache(maxsize=2)
def paper_tables(results: Results) -> dict[str, list[Table]]:
    """The tables of each file, one per protocol, by the file's name without ending."""
    found: dict[str, list[Table]] = {}
    for protocol in PROTOCOLS.values():
        for place, *layout in _layouts(results, protocol):
            found.setdefault(place.lower().replace(" ", ""), []).append(_table(results, protocol, place, *layout))
    return found


def _layouts(results: Results, protocol: Protocol) -> list[tuple[Any, ...]]:
    """Place, title, models, columns and end of the caption of every table."""
    p, distance, params = protocol.name, distances(results)[0], results.params
    robust = f"Robustness (%). Ours: {display_name(params, names.ours(results))}."
    ours = {"Ours": names.ours(results)}
    first = {name: f"autoattack/{p}/{key}" for key, name in ATTACKS.items()}
    second = {("", attack.upper()): transfer_metric(p, "pgd_at", attack, 5) for attack in protocol.transfer.attacks}
    third = table3_columns(protocol, params.current.evaluation.radius)
    generation = {names.DISTANCES[distance]: f"generate/generation/{'released-' if p == 'released' else ''}{distance}"}
    tradeoff = {"Robustness": f"clean/{p}/pgd-20", "Accuracy": f"clean/{p}/clean"} | generation
    jems = _plain_and_ours(results)
    rivals = [model for model in baselines(results) if model != "undefended"]
    return [
        ("Table 1", "AutoAttack's attacks", ours, first, robust),
        ("Table 2", "transfer attacks from a PGD-AT surrogate", {"TRADES": "trades"} | ours, second, robust),
        ("Table 3", "APGD-CE and EOT-PGD", ours, third, robust),
        ("Section 2", "generation", jems, generation, "Lower is better."),
        ("Section 3", "robustness, accuracy and generation", rivals + jems, tradeoff, "Robustness: PGD-20 (%)."),
    ]


def _plain_and_ours(results: Results) -> list[str]:
    """The current model, and plain and EB-JDAT models of every variant that was run."""
    models = [model for model in by_variant(results) if not model.startswith("control")]
    run = {model for model, _ in results.frame.index}
    return sorted((m for m in models if m in run or m == names.ours(results)), key=lambda m: m.startswith("ebjdat"))


def _table(
    results: Results, protocol: Protocol, place: str, title: str, models: Any, columns: dict[Any, str], extra: str
) -> Table:
    label, where = f"{place.lower().replace(' ', '')}-{protocol.name}", place.replace("Section", "Text of section")
    title = f"{where}: {title}, protocol {protocol.name}"
    table = pivot(results, label, title, models, columns, protocol=protocol, extra=extra, show=short)
    if results.params.current.data.dataset == "cifar10":
        published: dict[str, dict[str, Claim]] = {}
        for claim in in_table(place):
            published.setdefault(f"Published ({claim.row})", {})[claim.metric_under(protocol.name)] = claim
        for name, by_metric in published.items():
            texts = [by_metric[metric].text() if metric in by_metric else "" for metric in columns.values()]
            if any(texts):
                table.body.loc[name] = texts
    return table


def latex(table: Table) -> str:
    """A float that needs the package booktabs and nothing else; groups of columns stand below each other."""
    groups = list(dict.fromkeys(group for group, _ in table.body.columns))
    title = re.sub("^Table", "Supplement's Table", table.title)  # LaTeX numbers its floats itself
    title = title.partition(", protocol")[0]  # which the caption names
    parts = [
        "\\begin{table}[tbp]",
        "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}",
        f"\\caption{{{_plain(f'{title}. {table.caption}')}}}",
        f"\\label{{tab:{table.label}}}\n\\medskip",
        "\n\\medskip\n".join(_tabular(table.body, group) for group in groups) + "\\end{table}\n",
    ]
    return "\n".join(parts).replace("±", "$\\pm$").replace("é", "\\'e")


def _tabular(body: pd.DataFrame, group: str) -> str:
    """One group of columns; its name stands above them where it has one."""
    columns = [column for column in body.columns if column[0] == group]
    part = body[columns] if group else body[columns].droplevel(0, axis=1)
    # A name of the index would stand in a line of its own; one of the columns stands in theirs.
    named = part.rename_axis(index=None, columns=["", body.index.name][-part.columns.nlevels :])
    escaped = named.style.format(escape="latex").format_index(escape="latex").format_index(escape="latex", axis=1)
    return escaped.to_latex(hrules=True, multicol_align="c", column_format="l" + "c" * part.shape[1])


def _plain(text: str) -> str:
    return text.replace("%", "\\%").replace("_", "\\_").replace("&", "\\&").replace("#", "\\#")
