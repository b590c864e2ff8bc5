"""`surgery push | pull | verify | import-published`: adapters, without writing Python."""

from __future__ import annotations

from typing import Any

import click

from surgery import adapters
from surgery.adapters.record import CalibrationRecord
from surgery.cli.common import Command, OutPath, counted, out, print_json
from surgery.cli.options import SAVED, Asked, asking, json_option
from surgery.errors import SurgeryError
from surgery.hosts import view_of


@click.command(cls=Command)
@click.argument("adapter", type=click.Path(exists=True, file_okay=False))
@click.argument("repo_id")
@click.option("--revision", help="Branch to push to; made when absent. Default: the default branch.")
@click.option("--private/--public", default=None, help="Visibility, when the repository is new.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--message", "commit_message", help="Commit message.")
@click.option("--overwrite-card", is_flag=True, help="Replace a README.md that the repository already has.")
@json_option
def push(adapter: str, repo_id: str, as_json: bool, **how: Any) -> None:
    """Upload the folder ADAPTER to REPO_ID (user/name) on the Hub, in one commit.

    No model is needed. The access token is taken from HF_TOKEN or `hf auth login`.
    """
    done = adapters.push_adapter(adapter, repo_id, **how)
    print_json(vars(done)) if as_json else out.print(done.pr_url or done.url)


@click.command(cls=Command)
@click.argument("repo_id")
@click.option("--out", "folder", required=True, type=OutPath(), help="Folder to write; an older adapter is replaced.")
@click.option("--revision", help="Branch, tag or commit.")
@click.option("--subfolder", help="Folder inside the repository that holds the adapter.")
@json_option
def pull(repo_id: str, folder: str, revision: str | None, subfolder: str | None, as_json: bool) -> None:
    """Download the adapter REPO_ID (user/name), validate it, and write it to a folder."""
    adapter = adapters.pull_adapter(repo_id, folder, revision=revision, subfolder=subfolder)
    facts = {"source": adapter.source, "folder": folder}
    print_json(facts) if as_json else out.print(" -> ".join(facts.values()))


@click.command(cls=Command)
@click.argument("name", metavar="ADAPTER")
@click.option("--model", help=f"Check the fingerprint against this model: {SAVED}.")
@click.option("--revision", help="Branch, tag or commit, for an adapter on the Hub.")
@click.option("--subfolder", help="Folder inside the repository (or inside ADAPTER) that holds the adapter.")
@asking(recipe=False)
@json_option
def verify(name: str, revision: str | None, subfolder: str | None, asked: Asked, as_json: bool) -> None:
    """Check ADAPTER (a folder or a Hub id): files, structure, finite weights, thresholds, and, with --model, whether it
    fits that model and its weights. Exit code 1 when it is bad or does not fit.
    """
    facts: dict[str, Any] = {"adapter": name, "valid": False}
    try:
        opened = adapters.open_adapter(name, revision=revision, subfolder=subfolder)
        facts |= {"valid": True, **_facts(opened)}
        if asked.model:
            match = opened.match(view_of(asked.load(), pictures=True))
            found = vars(match) if match is not None else {"verdict": "not recorded", "precision": None}
            facts["model"] = {"name": asked.model, **found}
            facts["valid"] = facts["model"]["verdict"] != "different"
    except SurgeryError as error:
        facts |= {"valid": False, "error": str(error), "kind": type(error).__name__}
    print_json(facts) if as_json else _print(facts)
    if not facts["valid"]:
        raise SystemExit(1)


@click.command("import-published", cls=Command)
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False))
@click.option("--out", "folder", required=True, type=OutPath(), help="Adapter folder to write.")
@click.option("--model", help=f"The base model, to record its fingerprint: {SAVED}.")
@asking(recipe=False)
@json_option
def import_published(checkpoint: str, folder: str, asked: Asked, as_json: bool) -> None:
    """Turn a released Efficient-SAM2 shortcut, bypass_bottleneck_{base,large}.pth, into an adapter folder."""
    adapter = adapters.import_published(checkpoint, folder, model=asked.load() if asked.model else None)
    facts = {"adapter": folder, "valid": True, **_facts(adapter)}
    print_json(facts) if as_json else _print(facts)


_SHOWN = {"schema_version", "channels", "window", "shortcut", "thresholds", "calibration", "provenance", "kind"}


def _facts(adapter: Any) -> dict[str, Any]:
    config = adapter.config
    return {
        **config.model_dump(include=_SHOWN),
        "source": adapter.source,
        "written_by": config.library_version,
        "base_model": config.base_model.id,
        "revision": config.base_model.revision,
        "fingerprint_recorded": config.base_model.fingerprint is not None,
        "parameters": adapter.parameters,
        "recipe": adapter.recipe.to_dict(),
    } | ({"blocks": [config.entry_block, config.exit_block]} if hasattr(config, "entry_block") else {})


_VERDICTS = {
    "same": "is the base model",
    "rounded": "is the base model, rounded to {precision}",
    "different": "has other weights than the base model",
    "not recorded": "has the right structure; no fingerprint is recorded, its weights were not compared",
}


def _print(facts: dict[str, Any]) -> None:
    if "source" in facts:
        what = f"{facts['shortcut']} shortcut" if "blocks" in facts else "proposal head"
        out.print(f"{facts['source']}: {what}, {facts['parameters']:,} parameters")
        out.print(
            f"base model: {facts['base_model'] or 'not named'}" + (f" @ {facts['revision']}" * bool(facts["revision"]))
        )
        if "blocks" in facts:
            first, last = facts["blocks"]
            out.print(f"blocks {first}..{last - 1}, {facts['channels']} channels, windows of {facts['window']}")
        out.print(f"recipe: {facts['recipe']['metadata']['name']}; written by surgery {facts['written_by']}")
        if "blocks" in facts:
            thresholds = ", ".join(f"{name} {value:g}" for name, value in facts["thresholds"].items())
            out.print(f"thresholds: {thresholds}")
        out.print("fingerprint: " + ("recorded" if facts["fingerprint_recorded"] else "not recorded"))
        if facts.get("provenance"):
            out.print(f"imported from: {facts['provenance']['origin']}")
        if "blocks" in facts:
            out.print("fidelity: " + _measured(facts["calibration"]))
    if "model" in facts:
        out.print(f"{facts['model']['name']} " + _VERDICTS[facts["model"]["verdict"]].format(**facts["model"]))
    if "error" in facts:
        out.print(facts["error"])
    out.print("good" if facts["valid"] else "bad")


def _measured(calibration: dict[str, Any] | None) -> str:
    if calibration is None:
        return "not measured"
    record = CalibrationRecord.model_validate(calibration)
    parts = [
        f"J&F loss against {each.reference} {each.drop:.4f} ({each.spread()}), worst clip {each.worst_drop:.4f}"
        for each in (record.against_dense, record.against_truth)
        if each is not None
    ]
    kept = "kept" if record.kept else "not kept"
    return "; ".join([*parts, f"{counted(len(record.held_out_clips), 'held-out clip')}, promise {kept}"])
