"""One self-contained page: a template and data in, a single HTML file out.

The templates escape every text, and data reaches the scripts as JSON in which `<` cannot occur.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from surgery.files import write_whole

_ASSETS = Path(__file__).parent / "assets"


def write_page(path: Path, title: str, template: str, **facts: Any) -> None:
    """Write the page of a template to `path`, whole or not at all. Raises OSError."""
    jinja = Environment(loader=PackageLoader("surgery.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    jinja.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    sections: list[str] = []
    data: dict[str, Any] = {}

    def enter(title: str) -> str:
        sections.append(title)
        return f"section-{len(sections)}"

    def keep(kind: str, value: Any) -> str:
        key = f"{kind}-{len(data)}"
        data[key] = value
        return key

    helpers = {"enter": enter, "keep": keep, "at": at, "shown": shown, "plain": plain, "asset": _asset}
    body = Markup(jinja.get_template(template).render(helpers | facts))
    page = jinja.get_template("page.html.j2")
    write_whole(path, page.render(helpers, title=title, body=body, sections=sections, data=data))


def at(value: Any, path: str) -> Any:
    """What lies at a dotted path in plain data; None where a part of it is not there. `length` is that of a list."""
    for part in path.split("."):
        if value is None:
            return None
        if isinstance(value, (list, tuple)):
            value = len(value) if part == "length" else value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part)
    return value


def shown(value: Any, form: str) -> str:
    """A cell. form: "" for text, or as of `format`, with "p" for points of a fraction and a suffix after a bar."""
    if value is None:
        return "–"
    form, _, suffix = form.partition("|")
    if not form:
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else plain(value)
    if form.endswith("p"):
        # Rounded first: adding zero then turns a -0.0 into 0.0.
        digits = int(form[-2])
        value, form = round(100 * value, digits) + 0.0, form[:-1] + "f"
    return f"{value:{form}}{suffix}"


def plain(value: Any) -> str:
    """Settings as a person reads them: `score_gate 3, keep 0.05`."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _asset(name: str) -> Markup:
    return Markup((_ASSETS / name).read_text(encoding="utf-8"))
