"""The model card of an adapter: only what is known, never a number that was not measured."""

from __future__ import annotations

from collections.abc import Iterator

from surgery.adapters.config import AdapterConfig
from surgery.adapters.record import CalibrationRecord
from surgery.describe import described
from surgery.hosts import hosts
from surgery.recipe import Recipe

HERE = "path/to/this/folder"
_TASK = "video-object-segmentation"

_SNIPPET = """With {title}:

```python
{line}
from surgery import load_adapter
model = load_adapter({model}, "{adapter}")
```"""

_LIMITS = """* It fits one base model: other routed weights are refused at load (`force=True` overrides).
* Nothing is known of it beyond what is stated above; on other footage, check the masks against the stock model.
* Windows that are skipped are approximated. Fast, small or newly appearing objects are where that shows first.
* Frames that are computed in full (the first, prompted ones, others as the recipe's `refresh` says) save nothing: short
  clips gain little."""


def model_card(config: AdapterConfig, recipe: Recipe, parameters: int, adapter: str = HERE) -> str:
    """README.md of an adapter folder: Hub front matter, what it is, how to use it, what was measured, its recipe.

    Args:
        config, recipe: the adapter's.
        parameters: number of added parameters.
        adapter: what the usage snippet loads: a Hub id, or a placeholder for the folder.
    """
    base = config.base_model.id
    sections = [
        f"# {config.family} surgery adapter, recipe `{recipe.metadata.name}`",
        described(recipe),
        f"{parameters:,} parameters are added to {f'`{base}`' if base else 'the base model'} for blocks "
        f"{config.entry_block}..{config.exit_block - 1} (windows of {config.window} tokens); nothing of the base model "
        "is in this repository.",
        "## Use",
        *_snippets(config, adapter),
        "Track exactly as before; `surgery.desparsify(model)` gives the stock model back, bit for bit.",
        "## Fidelity",
        _fidelity(config.calibration),
        *_origin(config),
        "## Limits",
        _LIMITS,
        "## Recipe",
        f"```yaml\n{recipe.to_yaml().strip()}\n```",
    ]
    return f"---\n{_front_matter(config, recipe)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(config: AdapterConfig, recipe: Recipe) -> str:
    # Not above: who only reads an adapter needs no client of the Hub.
    from huggingface_hub import EvalResult, ModelCardData

    base, record = config.base_model.id, config.calibration
    clips, measured = "", []
    if record is not None:
        count = len(record.held_out_clips)
        clips = f"{count} held-out clip{'s' * (count != 1)}, {record.held_out_frames} tracked frames"
        measured = [fidelity for fidelity in (record.against_dense, record.against_truth) if fidelity is not None]
    results = [
        EvalResult(
            task_type=_TASK,
            task_name="Video object segmentation",
            # The Hub merges results whose dataset has the same type and config, whatever its name.
            dataset_type="held-out-clips",
            dataset_name=f"{clips}, against {fidelity.reference}",
            dataset_config=fidelity.reference,
            metric_type=kind,
            metric_name=name.format(fidelity.reference),
            metric_value=value,
        )
        for fidelity in measured
        for kind, name, value in (
            ("j-and-f-drop", "Mean loss of J&F against {}", fidelity.drop),
            ("j-and-f-drop-worst-clip", "Loss of J&F against {}, worst clip", fidelity.worst_drop),
        )
    ]
    data = ModelCardData(
        library_name="surgery",
        pipeline_tag="mask-generation",
        license="apache-2.0",
        tags=["surgery", config.family.replace(" ", "").lower(), _TASK, "sparse", "adapter"],
        base_model=base,
        base_model_relation="adapter" if base else None,
        model_name=f"surgery adapter, {recipe.metadata.name}" if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _snippets(config: AdapterConfig, adapter: str) -> Iterator[str]:
    for host in hosts():
        shown = host.loader.example(config.base_model.id) if host.family == config.family else None
        if shown is None:
            continue
        line, model = shown
        yield _SNIPPET.format(title=host.loader.title, line=line, model=model, adapter=adapter)


def _fidelity(record: CalibrationRecord | None) -> str:
    if record is None:
        return "Not measured: neither fidelity nor speed of this adapter has been measured."
    single = record.against_dense.interval is None
    lines = [
        *record.table(),
        "",
        f"How: shortcut fitted by {record.fit}"
        + (f" ({record.steps} steps)" if record.steps else "")
        + f" on {len(record.fit_clips)} clips ({record.fit_frames} frames), measured on {len(record.held_out_clips)} "
        f"other clip{'s' * (len(record.held_out_clips) != 1)} ({record.held_out_frames} frames), seed {record.seed}; "
        + ("one clip gives no interval." if single else "95 % bootstrap interval over clips."),
        f"The recipe promises a mean loss of at most {record.max_drop:g} and at most {record.max_clip_drop:g} on any "
        f"clip: {'kept' if record.kept else '**not kept**'} on the held-out clips.",
    ]
    shares = (("windows computed", record.windows_kept), ("memory keys read", record.keys_kept))
    measured = [f"{name}: {value:.1%}" for name, value in shares if value is not None]
    return "\n".join([*lines, *(["Measured there: " + ", ".join(measured) + "."] if measured else [])])


def _origin(config: AdapterConfig) -> list[str]:
    found = []
    if config.provenance is not None:
        origin, digest = config.provenance.origin, config.provenance.sha256
        found = ["## Origin", f"Weights imported unchanged from {origin}; sha256 of that file: `{digest}`."]
    if config.base_model.fingerprint is None:
        note = "The base model was not at hand: no fingerprint is recorded, and loading cannot check its weights."
        found = [*found, note] if found else ["## Origin", note]
    return found


__all__ = ["HERE", "model_card"]
