"""Claims of the shipped recipes in stages, at their own budgets on the embedded shapes: captions after each stage.

A recipe is run once, by its own seed, and beside it `lcm` alone with the recipe's student, batch and rate, for as many
evaluations as all stages took; the pictures that are judged are of three seeds. A student takes other numbers of steps
than its stage's by the plan that suits jumps, from the same start.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Run, over_seeds, slow
from fewstep.core.methods import made
from fewstep.core.plan import Plan
from fewstep.core.student import default_start
from fewstep.data.open import open_data
from fewstep.data.shapes import captions
from fewstep.distillation.adapter import merged
from fewstep.distillation.distill import AVERAGE, distill, plan_of
from fewstep.distillation.method import Setting
from fewstep.distillation.recipe import DistillRecipe, recipe_of
from fewstep.distillation.state import DistillState
from fewstep.guidance.guide import guide
from fewstep.hub.models import load
from fewstep.metrics.caption_accuracy import right_parts
from fewstep.sampling.build import plan
from fewstep.sampling.sample import sample

N, SCALE, TRIAL = 128, 2.0, 2  # captions, guidance of students that are told it, iterations that tell their cost
COUNTS, LONG = (1, 2, 4, 8), 100  # evaluations judged; those of a student of Bagel's first stage
BAGEL = {"tscd": 6, "dmd2": 6, "ladd": 1, "reward": 1}  # evaluations after its later stages
RIGHT = "share of captions that are right"


@functools.cache
def recipe(name: str) -> DistillRecipe:
    return recipe_of(name, {}, {})


@functools.cache
def teacher() -> Any:
    return load("shapes").requires_grad_(False)


@functools.cache
def run(name: str) -> tuple[Path, float]:
    """The folder of a recipe's run, with a folder for each stage, and the evaluations of all stages."""
    folder = Path(tempfile.mkdtemp(prefix="fewstep-claim-"))
    found = distill(teacher(), stages=name, out=folder / name, judge=False)
    return folder / name, sum(stage["figures"]["evaluations"] for stage in found.figures["stages"])


@functools.cache
def student(name: str, stage: int) -> Any:
    """The student after a stage of a recipe, counted from 1."""
    return load(run(name)[0] / f"stage-{stage}")


def lcm(name: str, iterations: int) -> DistillState:
    own, told = recipe(name), recipe(name).teacher.get("guidance")
    model, std, train = teacher(), float(teacher().data_std), own.train
    around = model if told is None else guide(model, "cfg", scale=float(told))
    options: dict[str, Any] = {} if told is not None else {"guidance": own.stage[0]["scales"], "told": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train["seed"])
        setting = Setting(
            around, model, default_start(model.process, std, shape=model.shape), 1, iterations, open_data("shapes"),
            data_std=std, lr=train["lr"], batch=train["batch"], ema=AVERAGE, seed=train["seed"],
            lora=own.student.get("lora"),
        )  # fmt: skip
        work = made("distiller", "lcm", 1, **options)(setting)
    state = DistillState(work, {}, seed=train["seed"], batch=train["batch"], accelerator=None)
    state.run(iterations)
    return state


@functools.cache
def single(name: str) -> Any:
    """The student of `lcm` alone, of the same evaluations."""
    each = lcm(name, TRIAL).method.setting.count.evaluations / TRIAL
    found = lcm(name, round(run(name)[1] / each)).averaged()
    return merged(found) if recipe(name).student.get("lora") else found


@functools.cache
def right(name: str, stage: int, evaluations: int, seed: int) -> float:
    """Captions right in so many evaluations after a stage; stage 0 is `lcm` alone."""
    model: Any = student(name, stage) if stage else single(name)
    chosen = steps_of(evaluations)
    if not stage or model.student.kind == "jump":
        start = default_start(model.process, float(teacher().data_std), shape=model.shape)
        chosen = plan_of(model.process, "jump", evaluations, start, None)
    told: dict[str, Any] = {"guidance": SCALE} if "guidance" in model.conditions else {}
    return shown(sample(model, N, plan=chosen, seed=1000 + seed, text=asked(seed), **told), seed)


def steps_of(count: int) -> Plan:
    """DDIM's of a diffusion model."""
    return plan(teacher().process, "ddim", steps=count)


@functools.cache
def asked(seed: int) -> list[str]:
    """Captions that no training saw."""
    return captions(torch.arange(N) + N * seed, "validation")


def shown(images: Tensor, seed: int) -> float:
    return right_parts(images, asked(seed))["full"] / N


def two_passes(seed: int) -> float:
    """Captions right of the guided teacher, in as many evaluations as a student of Bagel's first stage."""
    model = guide(teacher(), "cfg", scale=SCALE)
    return shown(sample(model, N, plan=steps_of(LONG // 2), seed=1000 + seed, text=asked(seed)), seed)


def about(name: str, evaluations: int) -> str:
    told = recipe(name).train
    return (
        f"embedded shapes, the recipe {name} ({told['iterations']} iterations of {told['batch']} in all), {evaluations}"
        f" evaluation{'s' if evaluations > 1 else ''}, {N} held-out captions"
    )


def _beside(name: str, stage: int, evaluations: int) -> Run:
    return over_seeds(
        lambda s: [right(name, each, evaluations, s) for each in (stage, 0)],
        "lcm alone, the evaluations of all stages", about(name, evaluations), "high", RIGHT,
    )  # fmt: skip


def _many(evaluations: int) -> str:
    return f"{evaluations} evaluation{'s' if evaluations > 1 else ''}"


def _hyper(number: int, method: str) -> tuple[Claim, ...]:
    return tuple(
        slow(method, f"after stage {number} of shapes-hyper {_many(k)} show more captions than lcm's",
             _beside("shapes-hyper", number, k))
        for k in COUNTS
    )  # fmt: skip


def _bagel(number: int, method: str) -> Claim:
    said = f"after stage {number} of shapes-bagel {_many(BAGEL[method])} show more captions than lcm's"
    return slow(method, said, _beside("shapes-bagel", number, BAGEL[method]))


CLAIMS: tuple[Claim, ...] = (
    *(claim for number, method in enumerate(("tscd", "dmd2", "reward"), 1) for claim in _hyper(number, method)),
    slow("guided", f"after stage 1 of shapes-bagel {LONG} evaluations show as many captions as two passes, less 0.03",
         over_seeds(lambda s: [right("shapes-bagel", 1, LONG, s), two_passes(s) - 0.03],
                    f"two passes in {LONG // 2} steps of DDIM, less 0.03", about("shapes-bagel", LONG), "high", RIGHT)),
    *(_bagel(number, method) for number, method in enumerate(BAGEL, 2)),
)  # fmt: skip
