"""Results as a table, one row each, and as one page that holds the table and every figure."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields

from lens_rnn.evaluation.curves import Curves

import numpy as np
import plotly.graph_objects as go

STYLE = (
    "body{font:16px Helvetica,Arial,sans-serif;color:#1a1a1a;max-width:1240px;margin:24px auto;padding:0 16px}"
    "table{border-collapse:collapse;font-size:14px}td,th{padding:4px 10px;border-bottom:1px solid "
    "#e4e4e4;text-align:left}"
    "figure{margin:32px 0;overflow-x:auto}.wide{overflow-x:auto}"
)


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One result in bits per byte. Means and layers leave out a layer at depth 1, which is the model's own
    prediction."""

    result: str
    """Its name."""
    family: str
    """Its architecture."""
    layers: int
    """Layers that count."""
    model_ce: float
    """Cross-entropy of the model itself."""
    uniform_ce: float | None
    """That of the uniform distribution."""
    mean_tuned_ce: float | None
    """Mean over layers for the tuned lens."""
    mean_logit_ce: float | None
    """Mean over layers for the logit lens."""
    tuned_worse_than_uniform: int | None
    """How many layers the tuned lens leaves worse than the uniform distribution."""
    these_worse_than_uniform: str
    """Which, by their index in the file: "0-4 7"."""
    tuned_worse_than_logit: int | None
    """How many layers it leaves worse than the logit lens."""
    these_worse_than_logit: str
    """Which."""
    broken: str
    """Why the result cannot be trusted, or nothing."""


def summarise(results: Sequence[Curves]) -> list[SummaryRow]:
    """One row a result, in their order."""
    return [_row(curves) for curves in results]


def _row(curves: Curves) -> SummaryRow:
    tuned, logit, fitted = curves.tuned_ce, curves.logit_ce, curves.fitted
    uniform = curves.worse_than_uniform(tuned)
    return SummaryRow(
        result=curves.name,
        family=curves.family or "",
        layers=len(fitted),
        model_ce=curves.model_ce,
        uniform_ce=curves.uniform_ce,
        mean_tuned_ce=None if tuned is None or not len(fitted) else float(tuned[fitted].mean()),
        mean_logit_ce=float(logit[fitted].mean()) if len(fitted) else None,
        tuned_worse_than_uniform=None if tuned is None or curves.uniform_ce is None else len(uniform),
        these_worse_than_uniform=ranges(uniform),
        tuned_worse_than_logit=None if tuned is None else len(curves.tuned_worse_than_logit),
        these_worse_than_logit=ranges(curves.tuned_worse_than_logit),
        broken=curves.broken or "",
    )


def ranges(indices: np.ndarray) -> str:
    """Increasing indices with runs shortened: [0, 1, 2, 5] is "0-2 5"."""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs if len(run))


def as_csv(rows: Sequence[SummaryRow]) -> str:
    """The table with every column; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(SummaryRow)])
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue()


def as_cells(rows: Sequence[SummaryRow]) -> list[list[str]]:
    """The table for people, its heading first: entropies with three digits, layers behind their count."""
    heading = [
        "result (bits per byte)",
        "model",
        "mean tuned",
        "mean logit",
        "uniform",
        "tuned worse than uniform",
        "… than logit",
        "broken",
    ]
    cells = [heading]
    for row in rows:
        entropies = [row.model_ce, row.mean_tuned_ce, row.mean_logit_ce, row.uniform_ce]
        cells.append(
            [
                row.result,
                *("-" if value is None else f"{value:.3g}" for value in entropies),
                _counted(row.tuned_worse_than_uniform, row.these_worse_than_uniform, row.layers),
                _counted(row.tuned_worse_than_logit, row.these_worse_than_logit, row.layers),
                row.broken,
            ]
        )
    return cells


def as_text(rows: Sequence[SummaryRow]) -> str:
    """The table for a terminal, in columns."""
    cells = as_cells(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join(lines)


def as_page(rows: Sequence[SummaryRow], figures: Mapping[str, go.Figure]) -> str:
    """A page with the table and the figures by name, which holds all it needs and works offline (about 5 MB)."""
    heading, *lines = [[html.escape(cell) for cell in line] for line in as_cells(rows)]
    table = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    parts = [
        f'<figure id="{html.escape(name)}">'
        + figure.to_html(full_html=False, include_plotlyjs=i == 0, div_id=f"plot-{i}", default_height="600px")
        + "</figure>"
        for i, (name, figure) in enumerate(figures.items())
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Figures</title><style>{STYLE}</style></head><body><h1>Lenses over depth</h1>"
        f'<div class="wide"><table><tr>{"".join(f"<th>{cell}</th>" for cell in heading)}</tr>{table}</table></div>'
        f"{''.join(parts)}</body></html>\n"
    )


def _counted(count: int | None, these: str, layers: int) -> str:
    if count is None:
        return "-"
    return f"{count} of {layers}: {these}" if count else f"0 of {layers}"
