"""The model card: the README.md of a model's folder, from a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser
from fewstep.core.plan import Plan
from fewstep.core.words import number_of

TEMPLATE = "card.md.jinja"


def model_card(
    model: Denoiser,
    name: str,
    plan: Plan | None = None,
    figures: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    fetched: bool = False,
) -> str:
    """The card as Markdown, with the front matter that the hub reads.

    Args:
        name: the folder's name or the repository's, which the example loads.
        figures: what `fs.evaluate` returned, once or for several plans.
        fetched: the example downloads the repository.

    Raises:
        ValueError: figures that `fs.evaluate` did not return.
    """
    from jinja2 import Environment, StrictUndefined

    results = [figures] if isinstance(figures, Mapping) else list(figures)
    for result in results:
        if not isinstance(result, Mapping) or not {"plan", "n", "figures"} <= result.keys():
            raise ValueError("figures must be what fs.evaluate returns, or a list of those")
    source = resources.files(__package__).joinpath(TEMPLATE).read_text("utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    about = model.describe()
    task = _task(model)
    kind = about.get("pipeline") or about.get("network") or about["denoiser"]
    return environment.from_string(source).render(
        title=name.rpartition("/")[2],
        task=task,
        tags=["fewstep", "diffusion", *(["diffusers"] if "pipeline" in about else []), _process(about)],
        lead=f"A model for fewstep: {kind}, {about['parameters']:,} parameters, under the process `{_process(about)}`.",
        load=f'"{name}", download=True' if fetched else f'"{name}"',
        asked=_asked(model),
        shape=_shape(model),
        plan=_plan(plan),
        facts=[(key, _brief(value)) for key, value in about.items() if value not in (None, {}, [])],
        figures=[_figures(result) for result in results],
    )


def _process(about: Mapping[str, Any]) -> str:
    return str(about["process"].get("process"))


def _task(model: Denoiser) -> str:
    if "text" in model.conditions:
        return "text-to-image"
    picture = any(isinstance(kind, Picture) for kind in model.conditions.values())
    return "image-to-image" if picture else "unconditional-image-generation"


def _asked(model: Denoiser) -> str:
    """The conditions of the example. A picture is required, so a variable of the reader's stands for it."""
    parts = []
    for name, kind in model.conditions.items():
        if isinstance(kind, Label):
            parts.append(f"{name}=0")
        elif isinstance(kind, Picture):
            parts.append(f"{name}={name}")
        elif name == "text":
            words = getattr(kind, "vocabulary", ("a", "photo"))
            parts.append(f'text="{" ".join(words[:1])}"')
    return "".join(f", {part}" for part in parts)


def _shape(model: Denoiser) -> str:
    size = "" if model.shape is None else f"(4, {', '.join(map(str, model.shape))})"
    span = "" if model.value_range is None else f"in [{model.value_range[0]:g}, {model.value_range[1]:g}]"
    if model.facts.autoencoder is not None:
        return f"pictures {span}".strip()
    return f"{size} {span}".strip()


def _plan(plan: Plan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    return {"nfe": plan.nfe, "name": plan.name, "times": plan.about.get("timesteps", "")}


def _brief(value: Any, longest: int = 300) -> str:
    """A fact on one line; long lists as their length and ends."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_brief(entry, 60)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, list | tuple):
        if len(value) > 12:
            return f"{len(value)} values from {_brief(value[0])} to {_brief(value[-1])}"
        return f"({', '.join(map(_brief, value))})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= longest else text[:longest] + "..."


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """One call of `evaluate` as rows (name, value, conditions)."""
    rows = []
    for name, figure in result["figures"].items():
        numbers = {key: value for key, value in figure.items() if isinstance(value, int | float) and key != "n"}
        words = [f"{key} {value}" for key, value in figure.items() if isinstance(value, str)]
        rest = [f"{key} {value:.4g}" for key, value in numbers.items() if key != "value"]
        value = f"{numbers['value']:.4g}" if "value" in numbers else ", ".join(rest)
        conditions = [f"n {figure['n']}"] if "n" in figure else []
        rows.append((name, value, ", ".join(conditions + words + (rest if "value" in numbers else []))))
    nfe = result.get("actual_nfe", result.get("planned_nfe"))
    times = result.get("about", {}).get("timesteps")
    about = f"{result['n']} samples by {result['plan']}" + (f" on {times} times" if times else "")
    about += f", {number_of(nfe, 'evaluation')} each" if nfe is not None else ""
    return {"about": about + (f", data {result['data']}." if result.get("data") else "."), "rows": rows,
            "notes": list(result.get("notes", ()))}  # fmt: skip
