"""`surgery …`: the command line."""

from __future__ import annotations

import warnings

import click

from surgery import __version__
from surgery.cli.adapters import import_published, pull, push, verify
from surgery.cli.bench import bench
from surgery.cli.calibrate import calibrate, fit
from surgery.cli.common import note
from surgery.cli.demo import demo, demo_clips, demo_eval
from surgery.cli.eval import evaluate_command
from surgery.cli.inspect import inspect
from surgery.cli.recipes import recipes
from surgery.cli.report import report
from surgery.cli.segment import segment
from surgery.cli.track import track
from surgery.hosts import hosts


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="surgery")
def main() -> None:
    """Make video models of SAM 2 and SAM 3 faster without retraining, and see what it does to them."""
    warnings.showwarning = note
    for host in hosts():
        host.loader.quiet()


for command in (
    track, segment, inspect, recipes, demo, demo_eval, demo_clips, bench, report, evaluate_command, calibrate, fit,
    push, pull, verify, import_published,
):  # fmt: skip
    main.add_command(command)


if __name__ == "__main__":
    main()
