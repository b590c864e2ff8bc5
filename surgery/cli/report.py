"""`surgery report`: one self-contained HTML file from result files."""

from __future__ import annotations

import click

from surgery.cli.common import Command, OutPath, noted, out


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--out", "target", default="report.html", type=OutPath(dir_okay=False))
@click.option(
    "--frames", type=click.Path(), help="Pictures of the traces: FRAMES/SEQUENCE/NAME.jpg or FRAMES/NAME.jpg."
)
@click.option("--title", default="surgery report")
def report(files: tuple[str, ...], target: str, frames: str | None, title: str) -> None:
    """Make one HTML page of FILES: results of eval, bench and calibrate, and traces, in any number and order.

    The page needs no network and no other file.
    """
    from surgery.report.build import write_report

    path = write_report(files, target, frames=frames, title=title)
    out.print(noted(path, f"{path.stat().st_size / 1024:.0f} kB"))
