"""Claims of adapters added up: an acceleration adapter and a style's on the embedded shapes, trained apart; and of a
style's adapter that passes between the embedded shapes and their student, `shapes-4`.

The acceleration adapter is `lcm`'s with guidance inside, one a seed; the style is the recipe `shapes-outline`, cut
short, one for all seeds. An evaluation is a pass of the network for one picture: guided steps make two.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Run, experiment, over_seeds, slow, tolerance
from fewstep.core.methods import made
from fewstep.core.student import Student, default_start
from fewstep.data.open import open_data
from fewstep.data.shapes import captions
from fewstep.distillation.distill import AVERAGE, plan_of
from fewstep.distillation.method import Setting
from fewstep.distillation.state import DistillState
from fewstep.guidance.guide import guide
from fewstep.hub.adapters import with_adapters
from fewstep.hub.models import load
from fewstep.metrics.shapes_verifier import check, in_outline
from fewstep.sampling.sample import sample
from fewstep.training.adapter_files import save_lora
from fewstep.training.lora import add_lora, lora_parameters
from fewstep.training.recipe import Recipe
from fewstep.training.recipes import recipe_path
from fewstep.training.trainer import train

RANK, ITERATIONS, BATCH, GUIDANCE, EVALUATIONS = 8, 160, 16, 2.0, 4
STYLE_STEPS, STYLE = 240, 0.8  # of the recipe; the scale at which the style acts
N = 128  # captions that no training saw, a picture each
GRID = ((0.5, 0.8), (1.0, 0.4), (0.5, 0.4), (1.0, 1.2))  # other scales of acceleration and style
ABOUT = (
    f"embedded shapes, {N} held-out captions, lcm of rank {RANK} for {ITERATIONS} iterations of {BATCH}, guidance"
    f" {GUIDANCE:g} inside, {EVALUATIONS} evaluations"
)
STYLED = f"{ABOUT}; the recipe shapes-outline for {STYLE_STEPS} steps"
RIGHT, OUTLINED = "captions right", "share in outline"


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fewstep-claim-"))


@functools.cache
def shapes() -> Any:
    return load("shapes")


@functools.cache
def fast(seed: int) -> Path:
    """The file of an acceleration adapter."""
    model, std = shapes(), float(shapes().data_std)
    own = Setting(
        guide(model, "cfg", scale=GUIDANCE), model, default_start(model.process, std, shape=model.shape), EVALUATIONS,
        ITERATIONS, open_data("shapes"), data_std=std, batch=BATCH, ema=AVERAGE, seed=seed, lora=RANK,
    )  # fmt: skip
    work = made("distiller", "lcm", 1)(own)
    state = DistillState(work, {}, seed=seed, batch=BATCH, accelerator=None)
    state.run(ITERATIONS)
    found: Any = state.averaged()
    found.student = Student(work.kind, "lcm", "shapes", own.start, work.times(), GUIDANCE, ITERATIONS)
    found.plan = plan_of(own.process, work.kind, EVALUATIONS, own.start, work.times())
    return save_lora(found, _folder() / f"fast-{seed}.safetensors")


@functools.cache
def style(of: str = "shapes") -> Path:
    """The run's folder of the style, trained on the model of that name."""
    recipe = Recipe.read(recipe_path("shapes-outline"))
    assert recipe.adapter is not None
    adapter, steps = dataclasses.replace(recipe.adapter, model=of), dataclasses.replace(recipe.train, steps=STYLE_STEPS)
    short = dataclasses.replace(recipe, adapter=adapter, train=steps)
    return train(short, _folder() / f"style-{of}", device="cpu", progress=False).out


@functools.cache
def asked() -> list[str]:
    return captions(torch.arange(N), "validation")


@functools.cache
def drawn(acceleration: float, styled: float, seed: int, evaluations: int = EVALUATIONS) -> Tensor:
    """Pictures of the model with both adapters at their scales; without an acceleration by its own plan."""
    adapters = ({fast(seed): acceleration} if acceleration else {}) | ({style(): styled} if styled else {})
    model = with_adapters(shapes(), adapters)
    return sample(model, N, text=asked(), steps=evaluations, seed=1000 + seed)


def right(images: Tensor) -> float:
    return float(check(images, asked()).full.double().mean())


@functools.cache
def best_plan(seed: int, evaluations: int = 8) -> float:
    """Captions right of the best of the plain plans of so many evaluations, guided ones among them."""
    found = [right(drawn(0.0, 0.0, seed, evaluations))]
    guided = guide(shapes(), "cfg", scale=GUIDANCE)
    for solver in ("dpmpp-2m", "unipc-3", "ddim"):
        images = sample(guided, N, text=asked(), nfe=evaluations // 2, solver=solver, seed=1000 + seed)
        found.append(right(images))
    return max(found)


def _fast(theirs: str) -> Run:
    def figures(seed: int) -> list[float]:
        other = best_plan(seed) if theirs == "plan" else right(drawn(0.0, 0.0, seed))
        return [right(drawn(1.0, 0.0, seed)), other]

    against = (
        "the best plan of 8 evaluations, guided ones included" if theirs == "plan" else "no adapter, 4 evaluations"
    )
    return over_seeds(figures, against, ABOUT, "high", RIGHT)


def outlined(images: Tensor) -> float:
    return float(in_outline(images).double().mean())


def _kept(seed: int) -> list[float]:
    """In 4 evaluations with both, and 0.8 of what the style alone has in 8."""
    return [outlined(drawn(1.0, STYLE, seed)), 0.8 * outlined(drawn(0.0, STYLE, seed, 8))]


@functools.cache
def passed(trained_on: str, used_on: str, seed: int) -> float:
    """Share in outline that a style's adapter trained on one model brings to the pictures of one: of the base in 8
    evaluations, of the student in its 4."""
    model, nfe = load(used_on), 8 if used_on == "shapes" else EVALUATIONS
    styled = with_adapters(model, {style(trained_on): STYLE})
    images = [sample(each, N, text=asked(), steps=nfe, seed=1000 + seed) for each in (styled, model)]
    return outlined(images[0]) - outlined(images[1])


def _passed(trained_on: str, used_on: str) -> Run:
    """The effect where it was not trained over that where it was."""

    def figures(seed: int) -> list[float]:
        return [passed(trained_on, used_on, seed) / passed(trained_on, trained_on, seed), 0.8]

    about = (
        f"embedded {trained_on} and {used_on}, {N} held-out captions, the recipe shapes-outline for {STYLE_STEPS} steps"
        f" at scale {STYLE:g}; base in 8 evaluations, student in {EVALUATIONS}"
    )
    return over_seeds(figures, "tolerance", about, "high", "share in outline gained, over that where it was trained")


def both(images: Tensor) -> float:
    """In outline, of the colours and in the places that were asked for."""
    found = check(images, asked(), 1.5)
    return float((in_outline(images) & found.colour & found.position).double().mean())


def _grid(seed: int) -> list[float]:
    return [both(drawn(1.0, STYLE, seed)), max(both(drawn(*scales, seed)) for scales in GRID)]


@experiment
def _sums(seed: int) -> Any:
    """The largest difference of the weights in two orders, and from PEFT's own layers side by side."""
    base, files = load("digits"), []
    generator = torch.Generator().manual_seed(seed)
    for number in range(2):
        model = add_lora(base, 4 + number)
        for parameter in lora_parameters(model):
            parameter.data.normal_(std=0.05, generator=generator)
        files.append(save_lora(model, _folder() / f"{seed}-{number}.safetensors"))
    given = [(files[0], 0.7), (files[1], -0.4)]
    one, other = (with_adapters(base, dict(order)).state_dict() for order in (given, given[::-1]))
    apart = [with_adapters(base, {file: scale}).state_dict() for file, scale in given]
    own = base.state_dict()
    worst = max(
        float((value - expected).abs().max())
        for name, value in one.items()
        for expected in (other[name], sum(part[name] for part in apart) - own[name])
    )
    return tolerance(worst, 1e-6, "embedded digits, ranks 4 and 5 at scales 0.7 and -0.4", "largest gap of a weight")


CLAIMS = (
    Claim("with-adapters", "sums of adapters are those of their merged weights, in any order", _sums()),
    slow("with-adapters", "4 evaluations with the adapter are right more often than without", _fast("none")),
    slow("with-adapters", "4 evaluations with the adapter are right more often than the best plan of 8", _fast("plan")),
    slow("with-adapters", "with the acceleration in 4 evaluations at least 0.8 of the style's outlines remain",
         over_seeds(_kept, "0.8 of the style's alone in 8 evaluations", STYLED, "high", OUTLINED)),
    slow("with-adapters", "a style trained on the base has 0.8 of its effect on the base's student",
         _passed("shapes", "shapes-4")),
    slow("with-adapters", "a style trained on the student has 0.8 of its effect on the student's base",
         _passed("shapes-4", "shapes")),
    slow("with-adapters", "scales 1 and 0.8 give more outlines of the right colours and places than others",
         over_seeds(_grid, "the best of " + ", ".join(f"{a:g} and {b:g}" for a, b in GRID), STYLED, "high",
                    "in outline, colours and places right")),
)  # fmt: skip
