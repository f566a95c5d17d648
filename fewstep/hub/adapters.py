"""A model with low-rank adapters: `fs.with_adapters(model, {"runs/fast-lora": 1.0, "runs/style": 0.8})`.

An acceleration adapter is one that says in its file what student it makes of the network. Of the adapters that act (a
scale other than 0) one may be such: the model is then that student and has its plan, which applies where nothing else
is asked for. All others change the weights alone.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.hub.lora import adapter_networks, add_adapters, check_weight
from fewstep.hub.saving import plain
from fewstep.networks import low_rank
from fewstep.networks.low_rank import Factors
from fewstep.networks.surgery import linked
from fewstep.training.adapter_files import Made, adapter_file, read_made
from fewstep.training.lora import without_adapters

METHODS = (
    Method(
        "with-adapters",
        kind="adapter",
        paper="LCM-LoRA: A Universal Stable-Diffusion Acceleration Module (Luo et al., 2023)",
        arxiv="2311.05556",
        claim="an acceleration adapter and a style's, added up: few steps in the style, nothing trained anew",
        use="with_adapters",
    ),
)


@checked
def with_adapters(model: Denoiser, adapters: Mapping[str | os.PathLike[str], float], merged: bool = True) -> Denoiser:
    """A model with adapters added to its weights, `W + sum scale_i B_i A_i`, in whatever order they come.

    Args:
        model: a network of ours, or a diffusers pipeline's; it stays as it is.
        adapters: scales by adapter: the folder of a run or of a model, or a file (for pipelines in the formats of
            diffusers, PEFT and kohya). A scale is a factor of the strength with which the adapter was trained; at 0 it
            changes nothing.
        merged: the answer has weights of its own, at no cost a call; else the adapters stand beside the model's own
            weights, which are in memory once, and `fs.save` adds them up.

    Raises:
        ValueError: a file that is no adapter, one of another network or of another rank than it says, a scale that is
            not finite, two adapters that make different students, a model that is no network alone.
        ImportError: for a pipeline, without peft.
    """
    for given, scale in adapters.items():
        check_weight(given, scale)
    if hasattr(model, "pipeline"):
        return _on_pipeline(model, adapters, merged)
    if not isinstance(model, NetworkDenoiser):
        raise ValueError(f"adapters are for networks alone, and this model is a {type(model).__name__}")
    base, students, factors = without_adapters(model), dict[str, Made](), dict[str, list[Factors]]()
    for given, scale in adapters.items():
        sides, found = read_made(base, adapter_file(given))
        if not scale:
            continue
        if found is not None:
            students[str(given)] = found
        for path, (down, up, own) in sides.items():
            factors.setdefault(f"network.{path}", []).append((down, up, own * scale))
    if merged:
        return taking(low_rank.merged(base, factors).eval(), students)
    beside = {path: low_rank.summed(several) for path, several in factors.items()}
    return taking(low_rank.adapted(base, beside) if beside else linked(base), students)


def _on_pipeline(model: Any, adapters: Mapping[str | os.PathLike[str], float], merged: bool) -> Any:
    """The same for a `PipelineDenoiser`: in a second pipeline, whose networks stand on the first one's weights."""
    pipeline = copy.copy(model.pipeline)
    networks = adapter_networks(pipeline) | {model.family.component: model.network}
    asking = [
        parameter for network in networks.values() for parameter in network.parameters() if parameter.requires_grad
    ]
    for name, network in networks.items():
        setattr(pipeline, name, linked(plain(network)))
    students = add_adapters(pipeline, {given: scale for given, scale in adapters.items()})
    for parameter in asking:  # which PEFT has frozen in both
        parameter.requires_grad_(True)
    if merged:
        for name in networks:
            setattr(pipeline, name, plain(getattr(pipeline, name)))
    return taking(model.around(pipeline), students)


def taking(model: Any, students: Mapping[str, Made]) -> Any:
    """The model, being the student that one of its adapters makes of it, if one does.

    Raises:
        ValueError: two that make different students.
    """
    for (one, first), (other, second) in zip(list(students.items())[:-1], list(students.items())[1:], strict=True):
        if first != second:
            raise ValueError(
                f"one adapter at most makes a student: {one} makes one by {first.student.method!r}, {other} one by"
                f" {second.student.method!r}; scale 0 leaves one out"
            )
    for found in students.values():
        model.student, model.plan = found.student, found.plan
    return model
