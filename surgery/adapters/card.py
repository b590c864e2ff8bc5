"""The model card of an adapter: only what is known, never a number that was not measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from surgery.adapters.config import AdapterConfig
from surgery.describe import described
from surgery.hosts import hosts
from surgery.recipe import Recipe

HERE = "path/to/this/folder"
"""What usage snippets load where the adapter's name on the Hub is not known."""
_TASK = "video-object-segmentation"


def render(template: str, **facts: Any) -> str:
    """The card made of a template of this folder."""
    cards = Environment(
        loader=PackageLoader("surgery.adapters"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return cards.get_template(template).render(facts)


def model_card(config: AdapterConfig, recipe: Recipe, parameters: int, adapter: str = HERE) -> str:
    """README.md of an adapter folder: Hub front matter, what it is, how to use it, what was measured, its recipe.

    Args:
        config, recipe: the adapter's.
        parameters: number of added parameters.
        adapter: what the usage snippet loads: a Hub id, or a placeholder for the folder.
    """
    record = config.calibration
    shares = (("windows computed", record.windows_kept), ("memory keys read", record.keys_kept)) if record else ()
    return render(
        "shortcut.md.j2",
        front=_front_matter(config, recipe),
        config=config,
        recipe=recipe,
        described=described(recipe),
        parameters=parameters,
        base=config.base_model.id,
        adapter=adapter,
        snippets=_snippets(config),
        record=record,
        shares=[f"{name}: {value:.1%}" for name, value in shares if value is not None],
    )


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


def _snippets(config: AdapterConfig) -> Iterator[tuple[str, str, str]]:
    """Of every host that takes the base: its title, the line that imports it, and what makes the model."""
    for host in hosts():
        shown = host.loader.example(config.base_model.id) if host.family == config.family else None
        if shown is not None:
            yield host.loader.title, *shown
