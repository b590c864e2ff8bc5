"""One self-contained page with sortable tables, charts and players: parts in, a single HTML file out.

Every text is escaped here, and data reaches the scripts as JSON in which `<` cannot occur.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from surgery.files import write_whole

Cell = str | float | int | None
SCRIPTS = ("charts.js", "page.js", "player.js")


class Document:
    """Collects sections; `render` gives the page."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._sections: list[tuple[str, str]] = []
        self._parts: list[str] = []
        self._data: dict[str, Any] = {}
        self._used = 0

    def section(self, title: str) -> None:
        """Begin a section; the navigation at the top leads to it."""
        name = self._name("section")
        self._sections.append((name, title))
        if len(self._sections) > 1:
            self._parts.append("</section>")
        self._parts.append(f'<section id="{name}"><h2>{html.escape(title)}</h2>')

    def heading(self, text: str) -> None:
        """A heading inside a section."""
        self._parts.append(f"<h3>{html.escape(text)}</h3>")

    def text(self, text: str, kind: str = "") -> None:
        """A paragraph; kind "note" is set smaller."""
        self._parts.append(f"<p{_class(kind)}>{html.escape(text)}</p>")

    def headline(self, sentence: str, tiles: Sequence[tuple[str, str, str]]) -> None:
        """What was done, in a sentence, and its main figures: (figure, what it is, detail)."""
        items = "".join(
            f"<li><strong>{html.escape(figure)}</strong> <span>{html.escape(what)}</span>"
            f"<small>{html.escape(detail)}</small></li>"
            for figure, what, detail in tiles
        )
        self._parts.append(f'<p class="lead">{html.escape(sentence)}</p><ul class="tiles">{items}</ul>')

    def facts(self, pairs: Sequence[tuple[str, str]]) -> None:
        """A list of names and values."""
        rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in pairs)
        self._parts.append(f"<dl>{rows}</dl>")

    def table(
        self,
        caption: str,
        columns: Sequence[tuple[str, str]],
        rows: Sequence[Sequence[Cell]],
        *,
        folded: bool = False,
    ) -> None:
        """A table that sorts by any column; the first column names the row.

        Args:
            caption: what it shows. columns: (heading, format), the format being "" for text or as of `format`, with an
                optional suffix after a bar: ".1%", ".2f|x". rows: numbers or texts; None is shown as a dash. folded:
                only the caption is shown until it is clicked.
        """
        head = "".join(
            f'<th scope="col"{"" if form else _class("text")}><button type="button">{html.escape(name)}</button></th>'
            for name, form in columns
        )
        body = []
        for row in rows:
            cells = []
            for number, ((_, form), value) in enumerate(zip(columns, row, strict=True)):
                tag = "th" if number == 0 else "td"
                scope = ' scope="row"' if number == 0 else ""
                order = "" if value is None else html.escape(str(value))
                kind = "" if form else _class("text")
                cells.append(f'<{tag}{scope}{kind} data-value="{order}">{_shown(value, form)}</{tag}>')
            body.append(f"<tr>{''.join(cells)}</tr>")
        words = html.escape(caption)
        # The caption stands outside: inside, a table wider than the page would carry it out of sight.
        outer, title = ("details", "summary") if folded else ("figure", "figcaption")
        self._parts.append(
            f'<{outer} class="table"><{title}>{words}</{title}><div class="edge">'
            f'<div class="scroll" tabindex="0" role="region" aria-label="{words}"><table class="sortable">'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div></div></{outer}>"
        )

    def chart(self, caption: str, spec: dict[str, Any], follow: str | None = None) -> None:
        """A chart drawn by `charts.js`; `caption` is also its alternative text, with the axes.

        follow: key of the player whose frame it marks.
        """
        key = self._keep("chart", spec)
        alt = f"{caption} Axes: {spec['x']['label']}, {spec['y']['label']}. "
        alt += f"Series: {', '.join(one['name'] for one in spec['series'])}."
        legend = [(_mark(spec["type"], one), one["name"], one["colour"]) for one in spec["series"]]
        if follow:
            legend.append((_CURSOR, "frame in the player", 0))
        following = f' data-follow="{follow}"' if follow else ""
        self._parts.append(
            f'<figure class="chart" data-chart="{key}" data-alt="{html.escape(alt)}"{following}>'
            f"<figcaption>{html.escape(caption)}</figcaption>{_legend(legend)}"
            f'<div class="plot"></div></figure>'
        )

    def bars(self, caption: str, names: Sequence[str], series: Sequence[tuple[str, int, Sequence[float]]]) -> None:
        """Bars from zero, a group per name: series are (name, colour, values at least 0, one per name)."""
        high = max((value for _, _, values in series for value in values), default=0.0) or 1.0
        rows = []
        for number, name in enumerate(names):
            bars = "".join(
                f'<dd class="s{colour}" style="--share:{values[number] / high:.4f}"><i></i>{values[number]:.2f}</dd>'
                for _, colour, values in series
            )
            rows.append(f"<dt>{html.escape(name)}</dt>{bars}")
        legend = _legend([(_BAR, name, colour) for name, colour, _ in series])
        self._parts.append(
            f'<figure class="bars"><figcaption>{html.escape(caption)}</figcaption>{legend}'
            f"<dl>{''.join(rows)}</dl></figure>"
        )

    def cases(self, label: str, names: Sequence[str]) -> Cases:
        """A choice of which of several groups of parts is shown."""
        return Cases(self, label, names)

    def player(self, trace: dict[str, Any]) -> str:
        """A player of a trace; returns the key that charts may follow."""
        key = self._keep("player", trace)
        self._parts.append(f'<div class="player" data-player="{key}"></div>')
        return key

    def write(self, path: Path) -> None:
        """Write the page to `path`, whole or not at all. Raises OSError."""
        write_whole(path, self.render())

    def raw(self, text: str) -> None:
        """Markup made by this package."""
        self._parts.append(text)

    def render(self) -> str:
        """The whole page."""
        title = html.escape(self.title)
        links = "".join(f'<a href="#{name}">{html.escape(text)}</a>' for name, text in self._sections)
        data = json.dumps(self._data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
        scripts = "\n".join(_asset(name) for name in SCRIPTS)
        closing = "</section>" if self._sections else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{title}</title><link rel="icon" href="data:,"><style>{_asset("report.css")}</style></head>'
            f'<body><header><h1>{title}</h1><nav aria-label="Sections">{links}</nav></header><main>\n'
            + "\n".join(self._parts)
            + f"{closing}</main><noscript><p>Charts, sorting and the player need JavaScript; tables do not.</p>"
            f'</noscript><script type="application/json" id="data">{data}</script>'
            f"<script>{scripts}</script></body></html>\n"
        )

    def _keep(self, kind: str, value: Any) -> str:
        key = self._name(kind)
        self._data[key] = value
        return key

    def _name(self, kind: str) -> str:
        self._used += 1
        return f"{kind}-{self._used}"


class Cases:
    """Groups of which one is shown: `with cases.group(0): ...`."""

    def __init__(self, document: Document, label: str, names: Sequence[str]) -> None:
        self.document, self.names = document, names
        options = "".join(f'<option value="{n}">{html.escape(name)}</option>' for n, name in enumerate(names))
        document.raw(
            f'<div class="cases"><label{"" if len(names) > 1 else " hidden"}>{html.escape(label)} '
            f"<select>{options}</select></label>"
        )
        self._at = 0

    def __enter__(self) -> Cases:
        self.document.raw(f'<div class="case"{" hidden" if self._at else ""}>')
        self._at += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.document.raw("</div>")
        if self._at == len(self.names):
            self.document.raw("</div>")


def _shown(value: Cell, form: str) -> str:
    if value is None:
        return "–"
    if not form:
        return html.escape(str(value))
    form, _, suffix = form.partition("|")
    return html.escape(f"{value:{form}}{suffix}")


_CURSOR = '<line x1="12" x2="12" y1="0" y2="14" class="cursor"/>'
_BAR = '<rect x="2" y="2" width="20" height="10" class="fill"/>'


def _mark(kind: str, series: dict[str, Any]) -> str:
    """The mark of a series as `charts.js` draws it, in a box of 24 x 14."""
    if kind == "lines":
        return '<line x1="1" x2="23" y1="7" y2="7" class="stroke"/>'
    whisker = any(point[3] is not None for point in series["points"])
    line = '<line x1="12" x2="12" y1="0" y2="14" class="stroke"/>' if whisker else ""
    return f'{line}<circle cx="12" cy="7" r="5" class="{"hollow" if series.get("hollow") else "fill"}"/>'


def _legend(entries: Sequence[tuple[str, str, int]]) -> str:
    items = "".join(
        f'<li><svg class="s{colour}" viewBox="0 0 24 14" aria-hidden="true">{mark}</svg>{html.escape(name)}</li>'
        for mark, name, colour in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _asset(name: str) -> str:
    return resources.files("surgery.report").joinpath(f"assets/{name}").read_text(encoding="utf-8")
