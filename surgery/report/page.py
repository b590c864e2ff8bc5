"""A self-contained HTML page: a title, paragraphs, tables and pictures, no network, light and dark."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } th { background: var(--soft); }
img, video { max-width: 100%; height: auto; border-radius: 4px; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; opacity: .8; } code { font-size: .9em; }
"""


class Page:
    """Collects parts and writes them as one file."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """A section heading."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph of plain text."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; the first column is left-aligned, the others right."""
        head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        self._parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def picture(self, image: npt.NDArray[np.uint8], caption: str) -> None:
        """An RGB array [H, W, 3], embedded as PNG; the caption is also its alternative text."""
        self._figure(f'<img src="{_png(image)}" alt="{html.escape(caption)}">', caption)

    def video(self, path: Path, still: npt.NDArray[np.uint8], caption: str) -> None:
        """An mp4 file, embedded; `still` [H, W, 3] is shown until it plays."""
        source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
        words = html.escape(caption)
        self._figure(
            f'<video src="{source}" poster="{_png(still)}" controls loop muted playsinline '
            f'aria-label="{words}"></video>',
            caption,
        )

    def _figure(self, media: str, caption: str) -> None:
        self._parts.append(f"<figure>{media}<figcaption>{html.escape(caption)}</figcaption></figure>")

    def write(self, path: Path) -> None:
        """Write the page to `path`."""
        title = html.escape(self.title)
        path.write_text(
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
            f"<style>{_STYLE}</style></head><body><h1>{title}</h1>\n" + "\n".join(self._parts) + "\n</body></html>\n",
            encoding="utf-8",
        )


def _png(image: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
