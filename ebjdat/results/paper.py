"""The paper's tables in the paper's form: its rows, columns and names, one number per cell, as Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ebjdat.protocols import PROTOCOLS, Protocol
from ebjdat.results.cells import Column, Table, pivot, short
from ebjdat.results.extended import ATTACKS, TRANSFER, distances, table3_columns, transfer_metric
from ebjdat.results.frame import Results
from ebjdat.results.names import baselines, by_variant, display_name
from ebjdat.results.published import Claim, in_table


def paper_tables(results: Results) -> dict[str, list[Table]]:
    """The tables of each file, one per protocol, by the file's name without ending."""
    builders = {"table1": table1, "table2": table2, "table3": table3, "section2": section2, "section3": section3}
    return {name: [build(results, protocol) for protocol in PROTOCOLS.values()] for name, build in builders.items()}


def table1(results: Results, protocol: Protocol) -> Table:
    """Robustness under AutoAttack's attacks, each alone."""
    columns: dict[Column, str] = {("", name): f"autoattack/{protocol.name}/{key}" for key, name in ATTACKS.items()}
    return _table(results, protocol, "Table 1", "AutoAttack's attacks", _ours(results), columns)


def table2(results: Results, protocol: Protocol) -> Table:
    """Robustness under transfer attacks from a PGD-AT surrogate."""
    columns = {("", attack.upper()): transfer_metric(protocol.name, "pgd_at", attack, 5) for attack in TRANSFER}
    models = {"TRADES": "trades"} | _ours(results)
    return _table(results, protocol, "Table 2", "transfer attacks from a PGD-AT surrogate", models, columns)


def table3(results: Results, protocol: Protocol) -> Table:
    """Robustness under APGD-CE over distortion and iterations, and EOT-PGD over distortion."""
    columns = table3_columns(protocol, results.params.current.evaluation.radius)
    return _table(results, protocol, "Table 3", "APGD-CE and EOT-PGD", _ours(results), columns)


def section2(results: Results, protocol: Protocol) -> Table:
    """Generation from each variant's default initialisation."""
    columns = {("", _distance(results)): _generation(results, protocol)}
    models = {display_name(results.params, model): model for model in _plain_and_ours(results)}
    return _table(results, protocol, "Section 2", "generation", models, columns, "Lower is better.")


def section3(results: Results, protocol: Protocol) -> Table:
    """The trade-off of robustness (PGD-20, as published), accuracy and generation."""
    columns: dict[Column, str] = {
        ("", "Robustness"): f"clean/{protocol.name}/pgd-20",
        ("", "Accuracy"): f"clean/{protocol.name}/clean",
        ("", _distance(results)): _generation(results, protocol),
    }
    models = [model for model in baselines(results) if model != "undefended"] + _plain_and_ours(results)
    named = {display_name(results.params, model): model for model in models}
    title, extra = "robustness, accuracy and generation", "Robustness: PGD-20 (%)."
    return _table(results, protocol, "Section 3", title, named, columns, extra)


def _ours(results: Results) -> dict[str, str]:
    return {f"Ours ({display_name(results.params, results.params.model)})": results.params.model}


def _plain_and_ours(results: Results) -> list[str]:
    """The current model, and plain and EB-JDAT models of every variant that was run."""
    models = [model for model in by_variant(results) if not model.startswith("control")]
    run = {model for model, _ in results.frame.index}
    return sorted((m for m in models if m in run or m == results.params.model), key=lambda m: m.startswith("ebjdat"))


def _distance(results: Results) -> str:
    return "FID" if distances(results)[0] == "fid" else "Frechet distance"


def _generation(results: Results, protocol: Protocol) -> str:
    twin = "released-" if protocol.name == "released" else ""
    return f"generate/generation/{twin}{distances(results)[0]}"


def _table(
    results: Results,
    protocol: Protocol,
    place: str,
    title: str,
    models: Mapping[str, str],
    columns: Mapping[Column, str],
    extra: str = "Robustness (%).",
) -> Table:
    label, title = f"{place.lower().replace(' ', '')}-{protocol.name}", f"{place}: {title}, protocol {protocol.name}"
    table = pivot(results, label, title, models, columns, protocol=protocol, extra=extra, show=short)
    if results.params.current.data.dataset == "cifar10":
        published: dict[str, dict[str, Claim]] = {}
        for claim in in_table(place):
            name = display_name(results.params, claim.model) if claim.model else claim.row
            published.setdefault(f"Published ({name})", {})[claim.metric_under(protocol.name)] = claim
        for name, by_metric in published.items():
            table.body.loc[name] = [
                by_metric[metric].text() if metric in by_metric else "" for metric in columns.values()
            ]
    return table


def latex(table: Table) -> str:
    """A float that needs the package booktabs and nothing else."""
    body = table.body if any(group for group, _ in table.body.columns) else table.body.droplevel(0, axis=1)
    # A name of the index would stand in a line of its own; one of the columns stands in theirs.
    named = body.rename_axis(index=None, columns=["", table.body.index.name][-body.columns.nlevels :])
    escaped = named.style.format(escape="latex").format_index(escape="latex").format_index(escape="latex", axis=1)
    tabular = escaped.to_latex(hrules=True, multicol_align="c", column_format="l" + "c" * body.shape[1])
    size, between = ("\\scriptsize", 1) if body.shape[1] > 6 else ("\\small", 4)
    title = re.sub("^Table", "Supplement's Table", table.title)  # LaTeX numbers its floats itself
    head = [
        "\\begin{table}[p]",
        f"\\centering{size}\\setlength{{\\tabcolsep}}{{{between}pt}}",
        f"\\caption{{{_plain(f'{title}. {table.caption}')}}}",
        f"\\label{{tab:{table.label}}}",
    ]
    return "\n".join([*head, f"{tabular}\\end{{table}}\n"]).replace("±", "$\\pm$")


def _plain(text: str) -> str:
    return text.replace("%", "\\%").replace("_", "\\_").replace("&", "\\&").replace("#", "\\#")
