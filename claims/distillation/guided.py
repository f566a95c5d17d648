"""Claims of guidance in one pass: students of the embedded captioned shapes beside their teacher's two passes.

Every student begins as the teacher's network, or stands on it, and trains for the same number of iterations. States
that are compared are pictures of the held-out split, noised as in training, scales even in the range.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from claims.claim import Claim, Run, over_seeds, slow
from claims.common import SLICED, Denoiser, plan, sliced
from claims.trained import NoiseLevels, fit
from fewstep.core.methods import made
from fewstep.core.noise import Noise
from fewstep.core.student import default_start
from fewstep.data.dataset import Dataset
from fewstep.data.open import open_data
from fewstep.denoisers.sun import load_sun, save_sun
from fewstep.distillation.distill import plan_of
from fewstep.distillation.levels import at_shares
from fewstep.distillation.memory import held, total
from fewstep.distillation.method import Distiller, Setting
from fewstep.distillation.scales import by_scale
from fewstep.distillation.state import DistillState
from fewstep.guidance.guide import guide
from fewstep.hub.models import load
from fewstep.metrics.caption_accuracy import right_parts
from fewstep.searching.problem import own_data

SCALES, BATCH, ITERATIONS, SHORT = (1.0, 4.0), 16, 240, 100  # iterations of stage one, and of stage two
RATES = {"guided": 5e-4, "progressive": 3e-4, "cfg-lora": 4e-3, "sun": 2e-3}
EMA, RANK = 0.97, 4
STATES, DRAWN, STEPS, TRUTH = 256, 160, 10, 64  # states, samples, their steps, and those of what is held for true
TUNING, DIM = 40, 0.5  # iterations of a fine-tune on pictures of so much contrast
START = 1000.0  # the share of the data's deviation from which the methods' cards begin: the process's first time
ABOUT = f"embedded shapes, scales {SCALES[0]:g} to {SCALES[1]:g}, {ITERATIONS} iterations of {BATCH} samples"
NOISED = f"{STATES} noised pictures"
RELATIVE = "squared difference of one pass from two, over the square of that"
LEFT = "share of the guidance's squared effect"


class Arm(NamedTuple):
    """A method with its options."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()


GUIDED, LORA = Arm("guided", (("scales", SCALES),)), Arm("cfg-lora", (("rank", RANK), ("scales", SCALES)))
SUN = Arm("sun", (("msc", 0.0), ("scales", SCALES)))


@functools.cache
def teacher() -> Any:
    return load("shapes").requires_grad_(False)


def data() -> Dataset:
    found = own_data(teacher())
    assert found is not None
    return found


def built(side: Arm, seed: int, iterations: int, base: Denoiser | None = None, steps: int = STEPS) -> Distiller:
    model = teacher() if base is None else base
    std = float(teacher().data_std)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of weights that are new
        own = Setting(
            model, model, default_start(model.process, std, START), steps, iterations, known=data, data_std=std,
            lr=RATES[side.method], ema=EMA, batch=BATCH, seed=seed,
        )  # fmt: skip
        found: Distiller = made("distiller", side.method, 1, **dict(side.options))(own)
    return found


def run(work: Distiller, seed: int) -> Denoiser:
    state = DistillState(work, {}, seed=seed, batch=BATCH, accelerator=None)
    state.run(work.setting.iterations)
    return state.averaged()


@functools.cache
def student(side: Arm, seed: int) -> Denoiser:
    return run(built(side, seed, ITERATIONS), seed)


@functools.cache
def halved(seed: int) -> tuple[Denoiser, Any]:
    """The second stage: from eight steps to four at every scale, with its plan."""
    work = built(Arm("progressive", (("first", 8),)), seed, SHORT, student(GUIDED, seed), 4)
    model = run(work, seed)
    return model, plan_of(model.process, work.kind, 4, work.setting.start, work.times())


@functools.cache
def tuned(seed: int) -> Denoiser:
    """The teacher after a short training on pictures of less contrast, which no adapter has seen."""

    def dim(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        images, named = data().batch(torch.randint(len(data()), (count,), generator=generator))
        return DIM * images, named

    model = copy.deepcopy(teacher()).requires_grad_(True)
    levels = NoiseLevels(model.process, "log-normal", -1.2, 1.2)
    found = fit(model, dim, steps=TUNING, batch=BATCH, lr=5e-4, levels=levels, ema=0.9, seed=seed)
    return found.requires_grad_(False)


@torch.no_grad()
def apart(
    model: Denoiser, base: Denoiser, seed: int, negatives: bool = False, shade: float = 1.0
) -> tuple[Tensor, ...]:
    """The squares of: a model's one pass less the two of its base; those two; and what guidance adds in them."""
    generator = torch.Generator().manual_seed(1000 + seed)
    held_out = open_data("shapes", split="validation")
    images, named = held_out.batch(torch.randint(len(held_out), (STATES,), generator=generator))
    away = named["text"][torch.randperm(STATES, generator=generator)]
    shares = torch.rand(STATES, generator=generator, dtype=torch.float64)
    process = base.process
    t = at_shares(process, default_start(process, float(teacher().data_std), START), shares)
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * torch.rand(STATES, generator=generator)
    eps = torch.randn(images.shape, generator=generator)
    x = shade * images + process.sigma(t).float()[:, None, None, None] * eps
    told = {"guidance": scale} if "guidance" in model.conditions else {}
    theirs = {"negative_text": away} if negatives else {}
    ours = {"negative": away} if negatives and "negative" in model.conditions else {}
    two = by_scale(base)(x, t, **named, guidance=scale, **theirs).x0
    one, plain = model(x, t, **named, **told, **ours).x0, base(x, t, **named).x0
    return tuple(part.double().square().sum() for part in (one - two, two, two - plain))


def relative(model: Denoiser, seed: int, base: Denoiser | None = None, **given: Any) -> float:
    off, whole, _ = apart(model, teacher() if base is None else base, seed, **given)
    return float(off / whole)


def left(model: Denoiser, seed: int, base: Denoiser | None = None, **given: Any) -> float:
    """What of the guidance's effect a model's one pass lacks: 1 for the base itself."""
    off, _, effect = apart(model, teacher() if base is None else base, seed, **given)
    return float(off / effect)


@functools.cache
def asked(seed: int) -> tuple[Tensor, list[str]]:
    """Captions of held-out pictures, as tokens and as words."""
    held_out = open_data("shapes", split="validation")
    rows = torch.arange(DRAWN) + 1000 * seed
    tokens = held_out.batch(rows % len(held_out))[1]["text"]
    return tokens, [teacher().conditions["text"].words(row) for row in tokens.tolist()]


@torch.no_grad()
def drawn(model: Denoiser, its_plan: Any, seed: int, **condition: Any) -> Tensor:
    noise = Noise(100 + seed).normal(0, (DRAWN, *teacher().shape), "cpu", torch.float32)
    return its_plan(model, noise, seed=seed, **condition)  # type: ignore[no-any-return]


def steps_of(count: int) -> Any:
    work = teacher()
    return plan_of(work.process, "denoiser", count, default_start(work.process, float(work.data_std), START), None)


@functools.cache
def right(side: Arm | None, seed: int, steps: int) -> float:
    """Captions right at scale 2: of a student's one pass, or of the teacher's two."""
    tokens, captions = asked(seed)
    model = guide(teacher(), "cfg", scale=2.0) if side is None else student(side, seed)
    x = drawn(model, steps_of(steps), seed, text=tokens, guidance=2.0)
    return right_parts(x, captions)["full"] / DRAWN


@functools.cache
def truth(seed: int) -> Tensor:
    """Samples of the teacher's two passes in many steps, of other noises than those that are judged."""
    return drawn(guide(teacher(), "cfg", scale=2.0), steps_of(TRUTH), seed + 50, text=asked(seed)[0])


def few(seed: int) -> list[float]:
    model, its_plan = halved(seed)
    ours = drawn(model, its_plan, seed, text=asked(seed)[0], guidance=2.0)
    theirs = plan(teacher().process, "ddim", timesteps=its_plan.times)
    other = drawn(guide(teacher(), "cfg", scale=2.0), theirs, seed, text=asked(seed)[0])
    return [sliced(x.double(), truth(seed).double()) for x in (ours, other)]


@functools.cache
def red(seed: int, negative: str, two_passes: bool = False) -> float:
    """Share of red pictures of "a circle", at scale 3."""
    model = guide(teacher(), "cfg", scale=3.0) if two_passes else student(SUN, seed)
    x = drawn(model, steps_of(STEPS), seed, text="a circle", negative=negative, guidance=3.0)
    return right_parts(x, ["a red circle"] * DRAWN)["colour"] / DRAWN


def plugged(seed: int, folder: Callable[[], Any]) -> Denoiser:
    with folder() as place:
        return load_sun(tuned(seed), save_sun(student(SUN, seed), f"{place}/sun.safetensors"))  # type: ignore[arg-type]


def on_a_fine_tune(seed: int) -> list[float]:
    from tempfile import TemporaryDirectory

    given: dict[str, Any] = {"base": tuned(seed), "negatives": True, "shade": DIM}
    return [left(model, seed, **given) for model in (plugged(seed, TemporaryDirectory), tuned(seed))]


@functools.cache
def bytes_of(side: Arm) -> tuple[float, float]:
    """Gradients and moments, and all that is held beside the activations."""
    work = built(side, 0, 1)
    parts = held(teacher(), work.players, work.copies())
    return float(parts["student"].gradients + parts["student"].moments), float(total(parts))


def bounded(figure: Callable[[int], float], limit: float, told: str, about: str, unit: str) -> Run:
    return over_seeds(lambda seed: [figure(seed), limit], told, about, unit=unit)


CLAIMS: tuple[Claim, ...] = (
    slow("guided", "one pass is within 0.02 of two, at every scale",
         bounded(lambda s: relative(student(GUIDED, s), s), 0.02, "tolerance", f"{ABOUT}, {NOISED}", RELATIVE)),
    slow("guided", "one pass has most of the guidance's effect",
         bounded(lambda s: left(student(GUIDED, s), s), 0.5, "tolerance: half of it is left; of the teacher's own pass"
                 " all is", f"{ABOUT}, {NOISED}", LEFT)),
    slow("guided", "ten steps of one pass show captions within 0.03 of two passes",
         over_seeds(lambda s: [right(GUIDED, s, STEPS), right(None, s, STEPS) - 0.03],
                    "two passes in ten steps, twice the evaluations, less 0.03", f"{ABOUT}, scale 2, {DRAWN} captions",
                    "high", "share of captions that are right")),
    slow("guided", "at equal evaluations one pass shows more captions than two",
         over_seeds(lambda s: [right(GUIDED, s, STEPS), right(None, s, STEPS // 2)],
                    "two passes in five steps", f"{ABOUT}, scale 2, {DRAWN} captions, ten evaluations",
                    "high", "share of captions that are right")),
    slow("progressive", "at every scale, four steps of one pass are nearer than DDIM's four of two passes",
         over_seeds(few, "the teacher's DDIM at the same times, two passes a step",
                    f"{ABOUT} and {SHORT} of stage two, scale 2, to {TRUTH} guided steps, {DRAWN} captions",
                    unit=SLICED)),
    slow("cfg-lora", "one pass differs from two at most twice as much as a full copy's",
         over_seeds(lambda s: [relative(student(LORA, s), s), 2 * relative(student(GUIDED, s), s)],
                    "twice that of guided, a full copy", f"{ABOUT}, rank {RANK}, {NOISED}", unit=RELATIVE)),
    slow("cfg-lora", "gradients and moments take at most a tenth of a full copy's",
         over_seeds(lambda s: [bytes_of(LORA)[0], bytes_of(GUIDED)[0] / 10], "a tenth of guided's, a full copy",
                    f"embedded shapes, rank {RANK}, by formula", unit="bytes")),
    slow("cfg-lora", "all that is held takes at most 0.6 of a full copy's",
         over_seeds(lambda s: [bytes_of(LORA)[1], bytes_of(GUIDED)[1] * 0.6], "0.6 of guided's, a full copy",
                    f"embedded shapes, rank {RANK}, beside the activations, by formula", unit="bytes")),
    slow("sun", "one pass has guidance's effect for pairs of captions that it never saw",
         over_seeds(lambda s: [left(student(SUN, s), s, negatives=True), left(teacher(), s, negatives=True)],
                    "the teacher's own pass", f"{ABOUT}, {NOISED} with captions to lead away from", unit=LEFT)),
    slow("sun", "at most half as many circles are red with red as negative",
         over_seeds(lambda s: [red(s, "red"), red(s, "") / 2], "half of those without a negative",
                    f"{ABOUT}, 'a circle' at scale 3, {DRAWN} pictures in {STEPS} steps", unit="share of red ones")),
    slow("sun", "no more circles are red with red as negative than in two passes",
         over_seeds(lambda s: [red(s, "red"), red(s, "red", True)], "two passes",
                    f"{ABOUT}, 'a circle' at scale 3, {DRAWN} pictures in {STEPS} steps", unit="share of red ones")),
    slow("sun", "the adapter does guidance in one pass for a fine-tune that it never saw",
         over_seeds(on_a_fine_tune, "the fine-tune's own pass",
                    f"{ABOUT}; fine-tune: {TUNING} iterations on pictures of {DIM:g} of the contrast, {NOISED}",
                    unit=LEFT)),
)  # fmt: skip
