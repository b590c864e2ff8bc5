"""`surgery …`: the command line."""

from __future__ import annotations

import warnings

import click

from surgery import __version__
from surgery.cli import adapters, bench, calibrate, common, demo, eval, inspect, recipes, report, segment, track
from surgery.hosts import hosts


@click.group(
    commands=[
        track.track, segment.segment, inspect.inspect, recipes.recipes, demo.demo, demo.demo_eval, demo.demo_clips,
        bench.bench, report.report, eval.evaluate_command, calibrate.calibrate, calibrate.fit, adapters.push,
        adapters.pull, adapters.verify, adapters.import_published,
    ],
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)  # fmt: skip
@click.version_option(__version__, prog_name="surgery")
def main() -> None:
    """Make video models of SAM 2 and SAM 3 faster without retraining, and see what it does to them."""
    warnings.showwarning = common.note
    for host in hosts():
        host.loader.quiet()


if __name__ == "__main__":
    main()
