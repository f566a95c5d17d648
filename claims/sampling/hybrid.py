"""Claims of hybrids: a base's first step before a student that has collapsed, on the embedded digits without labels.

The student is dmd2's with one turn of its score a turn of its own, without the adversarial loss and at four times its
rate, which draws it to few samples. Its four steps are those that it was trained at.
"""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from claims.claim import Outcome, Run, compared, experiment, over_seeds, slow
from claims.parts import Denoiser
from fewstep.core.methods import made
from fewstep.core.student import Student, default_start
from fewstep.data.digits import load as load_digits
from fewstep.distillation.distill import AVERAGE, plan_of
from fewstep.distillation.method import Setting
from fewstep.distillation.state import DistillState
from fewstep.hub.adapters import with_adapters
from fewstep.hub.models import load
from fewstep.metrics.digits_classifier import digits_classifier
from fewstep.sampling.hybrid import hybrid
from fewstep.sampling.sample import sample
from fewstep.training.adapter_files import save_lora
from fewstep.training.fit import fit, rows_of
from fewstep.training.lora import add_lora

STEPS, ITERATIONS, BATCH, RATE = 4, 80, 48, 4e-3  # of the student
N, EMPTY, NFE = 512, 10, 24  # samples judged, the label of none, evaluations of the teacher
TURNS, RANK = 200, 4  # of the adapter that is carried over
ABOUT = f"embedded digits without labels, dmd2 of {STEPS} steps, ratio 1, no GAN, {ITERATIONS} iterations of {BATCH}"
PAIRWISE, ENTROPY = "mean distance of two samples, of the teacher's", "entropy of the classes, of the teacher's"


@functools.cache
def teacher() -> Any:
    return load("digits")


@functools.cache
def student(seed: int) -> Denoiser:
    model, std = teacher(), float(teacher().data_std)
    own = Setting(
        model, model, default_start(model.process, std), STEPS, ITERATIONS, data_std=std, batch=BATCH, lr=RATE,
        ema=AVERAGE, seed=seed, given={"label": torch.tensor([EMPTY])},
    )  # fmt: skip
    work = made("distiller", "dmd2", 1, ratio=1, gan=0.0)(own)
    state = DistillState(work, {}, seed=seed, batch=BATCH, accelerator=None)
    state.run(ITERATIONS)
    found: Any = state.averaged().eval().requires_grad_(False)
    found.student = Student(work.kind, "dmd2", "digits", own.start, work.times())
    found.plan = plan_of(own.process, work.kind, STEPS, own.start, work.times())
    return found


@functools.cache
def drawn(what: str, seed: int) -> Tensor:
    """Samples of the teacher, the student in its four steps or in two, or the hybrid of one base step, all by the same
    noises."""
    if what == "teacher":
        return sample(teacher(), N, nfe=NFE, seed=seed)
    if what == "hybrid":
        return sample(hybrid(teacher(), student(seed), 1), N, seed=seed)
    return sample(student(seed), N, steps=int(what), seed=seed)


def pairwise(x: Tensor) -> float:
    return float(functional.pdist(x.flatten(1).double()).mean())


def entropy(x: Tensor) -> float:
    with torch.no_grad():
        share = digits_classifier()(x.float()).argmax(1).bincount(minlength=10).double() / len(x)
    return float(-(share * share.clamp_min(1e-12).log()).sum())


def ratio(figure: Any, what: str, seed: int) -> float:
    return figure(drawn(what, seed)) / figure(drawn("teacher", seed))


def _back(figure: Any, unit: str) -> Run:
    return over_seeds(lambda s: [ratio(figure, "hybrid", s), 0.9], "a tolerance", ABOUT, "high", unit)


def _against(figure: Any, what: str, unit: str) -> Run:
    against = {"4": "the student alone, at equal cost", "2": "the student in two steps"}[what]
    return over_seeds(lambda s: [ratio(figure, each, s) for each in ("hybrid", what)], against, ABOUT, "high", unit)


@experiment
def _cost(seed: int) -> Outcome:
    """Seconds for as many samples of the hybrid and of the teacher's plan."""
    taken, both = [], hybrid(teacher(), student(seed), 1)
    for model, nfe in ((both, None), (teacher(), NFE)):
        sample(model, 8, nfe=nfe, seed=seed)
        begin = time.perf_counter()
        sample(model, N, nfe=nfe, seed=seed)
        taken.append(time.perf_counter() - begin)
    return compared(taken, f"the teacher's {NFE} evaluations", f"{N} samples, {STEPS} evaluations", unit="seconds")


@functools.cache
def _adapter() -> Path:
    """Trained on the base: digits turned by a quarter."""
    images, labels = load_digits("train")
    turned = rows_of(torch.rot90(images, 1, (2, 3)), label=labels)
    trained = fit(add_lora(teacher(), RANK), turned, steps=TURNS, batch=64, lr=2e-3, seed=0)
    return save_lora(trained, Path(tempfile.mkdtemp(prefix="fewstep-claim-")) / "turned.safetensors")


def _effect(model: Denoiser, nfe: int | None, seed: int) -> Tensor:
    """What the adapter changes, a sample: by the same noises and labels."""
    label = [k % 10 for k in range(N)]
    made = with_adapters(model, {_adapter(): 1.0})
    one, other = (sample(each, N, nfe=nfe, seed=seed, label=label) for each in (made, model))
    return (one - other).flatten(1).double()


def _transfer(seed: int) -> list[float]:
    """Cosine of the adapter's effects on the base and on its student, over all samples together; 0.5."""
    base, own = _effect(teacher(), NFE, seed), _effect(student(seed), None, seed)
    return [float((base * own).sum() / (base.norm() * own.norm())), 0.5]


CLAIMS = (
    slow("hybrid", "one step of the base brings the distances of samples to 0.9 of the teacher's",
         _back(pairwise, PAIRWISE)),
    slow("hybrid", "one step of the base brings the entropy of the classes to 0.9 of the teacher's",
         _back(entropy, ENTROPY)),
    slow("hybrid", "samples are further apart than the student's, at equal cost", _against(pairwise, "4", PAIRWISE)),
    slow("hybrid", "samples are further apart than those of the student in two steps",
         _against(pairwise, "2", PAIRWISE)),
    slow("hybrid", "the classes' entropy is above the student's, at equal cost", _against(entropy, "4", ENTROPY)),
    slow("hybrid", "takes less time than the teacher", _cost()),
    slow("hybrid", "an adapter that was trained on the base moves the student as it moves the base",
         over_seeds(_transfer, "a tolerance", f"{ABOUT}; adapter of rank {RANK} on digits turned, {TURNS} iterations",
                    "high", "cosine of the changes of samples")),
)  # fmt: skip
