"""HTML pieces of the report: escaping, tables, sections, the page. Called by `report.html`.

Everything a piece shows is escaped here, in one place: class names, image names and settings come from data.
The page needs no script and no network, and its policy forbids both.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1280px; padding: 28px 24px 60px; background: #fff; color: #1d232b;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 38px 0 10px; padding-bottom: 5px;
     border-bottom: 1px solid #d8dee6; } h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 6px 0; max-width: 90ch; } .quiet { color: #5b6673; }
.missing { color: #8a5a00; background: #fff6e0; display: inline-block; padding: 2px 10px; border-radius: 4px; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; }
.card { border: 1px solid #d8dee6; border-radius: 8px; padding: 10px 16px; min-width: 150px; }
.card b { display: block; font-size: 25px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: #5b6673; font-size: 13px; }
.wide { overflow-x: auto; margin: 8px 0 14px; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid #e8ecf1; white-space: nowrap; }
th { background: #f5f7fa; font-weight: 600; white-space: normal; vertical-align: bottom; max-width: 110px; }
th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; } td.best { font-weight: 700; }
tr.total td { font-weight: 600; } tr:not(.total) + tr.total td { border-top: 2px solid #9aa5b1; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 13px; margin: 8px 0; }
.legend i { display: inline-block; width: 13px; height: 13px; border: 1px solid #0003; vertical-align: -2px;
            margin-right: 5px; }
.row { border-top: 1px solid #e8ecf1; padding: 10px 0 12px; } .row p { font-size: 13.5px; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: 8px; }
figure { margin: 0; } figure img { display: block; width: 150px; height: auto; border: 1px solid #d8dee6; }
figcaption { font-size: 12px; color: #5b6673; max-width: 150px; overflow-wrap: anywhere; }
.plots { display: flex; flex-wrap: wrap; gap: 12px; } .plots img { width: 440px; max-width: 100%; }
pre { background: #f5f7fa; padding: 12px; overflow-x: auto; font-size: 12.5px; } summary { cursor: pointer; }
"""


def text(value: Any) -> str:
    """Anything as escaped HTML text."""
    return escape(str(value), quote=True)


def paragraph(value: Any, css: str = "") -> str:
    return f'<p class="{css}">{text(value)}</p>' if css else f"<p>{text(value)}</p>"


def missing(stage: str) -> str:
    """What stands where a stage has not left its results."""
    return set_apart(f"{stage}: not run")


def set_apart(value: Any) -> str:
    """A line where numbers would stand, and why there are none."""
    return paragraph(value, "missing")


def table(rows: Sequence[Sequence[Any]], totals: int = 0, best: bool = False) -> str:
    """`rows[0]` is the heading; the last `totals` rows are set apart; `best` marks each row's highest number."""
    lines = ["<tr>" + "".join(f"<th>{text(cell)}</th>" for cell in rows[0]) + "</tr>"]
    for number, row in enumerate(rows[1:], start=1):
        numbers = [_number(cell) for cell in row[1:]]
        top = max((value for value in numbers if value is not None), default=None) if best else None
        cells = [f"<td>{text(row[0])}</td>"]
        for cell, value in zip(row[1:], numbers, strict=True):
            mark = ' class="best"' if top is not None and value == top else ""
            cells.append(f"<td{mark}>{text(cell)}</td>")
        lines.append(f"<tr{' class=total' if number >= len(rows) - totals else ''}>" + "".join(cells) + "</tr>")
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def pairs(items: dict[str, Any]) -> str:
    """Names and values as a two-column table of text."""
    lines = [f'<tr><td>{text(name)}</td><td class="text">{text(value)}</td></tr>' for name, value in items.items()]
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def cards(items: list[tuple[str, str]]) -> str:
    """(number, what it is) as a row of boxes."""
    boxes = [f'<div class="card"><b>{text(number)}</b><span>{text(what)}</span></div>' for number, what in items]
    return f'<div class="cards">{"".join(boxes)}</div>'


def swatches(items: Sequence[tuple[str, Sequence[int]]]) -> str:
    """A legend of (name, RGB colour)."""
    parts = []
    for name, colour in items:
        red, green, blue = (int(value) for value in colour)
        parts.append(f'<span><i style="background:rgb({red},{green},{blue})"></i>{text(name)}</span>')
    return f'<div class="legend">{"".join(parts)}</div>'


def figures(tiles: list[tuple[str, str]]) -> str:
    """(title, data: URI) as captioned pictures side by side."""
    parts = [
        f'<figure><img src="{text(uri)}" alt="{text(title)}"><figcaption>{text(title)}</figcaption></figure>'
        for title, uri in tiles
    ]
    return f'<div class="tiles">{"".join(parts)}</div>'


def plots(uris: list[tuple[str, str]]) -> str:
    """(title, data: URI) as large pictures side by side."""
    images = [f'<img src="{text(uri)}" alt="{text(name)}">' for name, uri in uris]
    return f'<div class="plots">{"".join(images)}</div>'


def details(summary: str, content: str) -> str:
    """`content` (plain text) folded away under `summary`."""
    return f"<details><summary>{text(summary)}</summary><pre>{text(content)}</pre></details>"


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{text(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def page(title: str, sections: list[str]) -> str:
    """The whole document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{text(title)}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )
