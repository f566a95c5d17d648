"""What leads samples where they are wanted, on the command line: guidance, steering, rewards and captions."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.common import open_model
from fewstep.cli.spec import read_spec

if TYPE_CHECKING:
    from fewstep.core.condition import Condition
    from fewstep.core.denoiser import Denoiser
    from fewstep.core.sampler import Sampler

Guide = Annotated[
    list[str] | None,
    typer.Option(
        metavar="METHOD:OPTIONS",
        help="A method of guidance ('fewstep methods --kind guidance'), as cfg:scale=4,clamp; several by repeating it.",
    ),
]
Nasa = Annotated[
    float | None,
    typer.Option(
        metavar="ALPHA",
        help="Take so much of what attention reads of --negative away, in one pass: students take it too, as 0.3.",
    ),
]
Steer = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD:OPTIONS",
        help="Steer by particles ('fewstep methods --kind steering'), as fk:particles=16,strength=30; with --reward.",
    ),
]
RewardName = Annotated[
    str | None,
    typer.Option(
        "--reward",
        metavar="NAME[=VALUE]",
        help="What to steer to ('fewstep methods --kind reward'), as digit=3, or soft-caption=a red circle.",
    ),
]


def guided(
    model: Denoiser,
    guidance: float | None,
    negative: str | None = None,
    guides: Sequence[str] | None = None,
    nasa: float | None = None,
) -> Denoiser:
    """The model under NASA of an alpha and classifier-free guidance of a scale, and under methods as `--guide` names
    them; a model that is told its scale is told this one, in one pass."""
    from fewstep.core.methods import find
    from fewstep.core.student import NO_NEGATIVE, check_unguided
    from fewstep.guidance.guide import guide

    if nasa is not None and negative is None:
        raise ValueError("--nasa takes away what is read of another caption: give --negative as well")
    if guidance is not None and model.student is not None and "guidance" in model.conditions:
        model, guidance = _told(model, guidance), None
    if negative is not None and nasa is None and "negative" in model.conditions:
        check_reads(model, negative, "--negative")
        model, negative = _away(model, negative), None
    if negative is not None and nasa is None and not guides:
        check_unguided(model.student, NO_NEGATIVE)
    asked: list[tuple[str, dict[str, Any]]] = [] if nasa is None else [("nasa", {"alpha": nasa})]
    asked += [] if guidance is None else [("cfg", {"scale": guidance})]
    asked += [read_spec(text, "--guide") for text in guides or ()]
    if negative is not None:
        takes = [k for k, (name, _) in enumerate(asked) if "negative" in signature(find(name, "guidance")).parameters]
        if not takes:
            raise ValueError(
                "--negative is what guidance keeps away from: give --guidance, --nasa or --guide cfg as well"
            )
        check_reads(model, negative, "--negative")
        asked[takes[0]][1].setdefault("negative", negative)
    for name, options in asked:
        kinds = {} if not options else signature(find(name, "guidance")).parameters
        for key, value in options.items():
            if isinstance(value, str) and key in kinds and "Denoiser" in str(kinds[key].annotation):
                options[key] = open_model(value, str(model.device))
        model = guide(model, name, **options)
    return model


def _told(model: Denoiser, scale: float) -> Denoiser:
    """The student with a scale of its guidance for all that leave it out: it was opened for this command alone.

    Raises:
        ValueError: a scale for which it was not trained.
    """
    from dataclasses import replace

    from fewstep.conditions.number import Number

    kind = model.conditions["guidance"]
    assert isinstance(kind, Number)
    low, high = kind.low, kind.high
    if low is not None and high is not None and not low <= scale <= high:
        raise ValueError(f"guidance {scale:g} is outside {low:g} to {high:g}, for which this student was trained")
    return _usual(model, "guidance", replace(kind, default=float(scale)))


def _away(model: Denoiser, negative: str) -> Denoiser:
    """The student with what it leads away from for all that leave it out."""
    from fewstep.conditions.negative import Negative

    kind = model.conditions["negative"]
    assert isinstance(kind, Negative)
    kind.check("--negative", negative, 1, model.device)
    return _usual(model, "negative", Negative(kind.of, negative))


def _usual(model: Denoiser, name: str, kind: Condition) -> Denoiser:
    """The model with another kind in the place of a condition's own, in all its layers that have it."""
    from fewstep.core.denoiser import Wrapper

    layer = model
    while name in layer.conditions:
        layer.conditions = {**layer.conditions, name: kind}
        if not isinstance(layer, Wrapper):
            break
        layer = layer.model
    return model


def read_reward(text: str) -> str | dict[str, Any]:
    """A reward as `fs.steer` takes it, of NAME or NAME=VALUE: the value is the reward's first option."""
    from fewstep.core.methods import find

    name, given, value = text.partition("=")
    parameters = list(signature(find(name, "reward")).parameters)[1:]
    if not given:
        return name
    if not parameters or not value.strip():
        raise ValueError(f"--reward takes NAME or NAME=VALUE, such as digit=3; {name!r} takes {parameters or 'none'}")
    return {"name": name, parameters[0]: int(value) if value.strip().isdecimal() else value.strip()}


def steered(plan: Sampler, steer: str | None, reward: str | None) -> Sampler:
    """A plan steered by particles, where that is asked for."""
    if steer is None:
        if reward is not None:
            raise ValueError("--reward is what particles are steered to: give --steer fk as well")
        return plan
    from fewstep.guidance.steer import steer as steered_by

    method, options = read_spec(steer, "--steer")
    if reward is not None:
        options["reward"] = read_reward(reward)
    return steered_by(plan, method, **options)


def check_reads(model: Denoiser, prompt: str | None, option: str = "--prompt") -> None:
    """`ValueError` for a prompt to a model that reads none."""
    if prompt is not None and "text" not in model.conditions:
        extra = ", or give --label" if "label" in model.conditions else ""
        raise ValueError(f"this model reads no captions: leave {option} out{extra}")


def prompted(
    model: Denoiser,
    prompt: str | None,
    guidance: float | None,
    negative: str | None,
    guides: Sequence[str] | None = None,
) -> Denoiser:
    """The model guided, and with its caption fixed where one is given: what measures and searches take."""
    from fewstep.denoisers.fixed import Fixed

    check_reads(model, prompt)
    made = guided(model, guidance, negative, guides)
    return Fixed(made, text=prompt) if prompt is not None else made
