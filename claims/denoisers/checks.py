"""Claims of fewstep/denoisers/checks.py."""

from __future__ import annotations

import itertools

from torch import Tensor

from claims.common import VP, Claim, GaussianMixture, Outcome
from claims.problems import wide
from fewstep.denoisers.checks import check_denoiser
from fewstep.denoisers.wrap import Wrapped, wrap

KINDS = ("x0", "eps", "v", "velocity", "-eps", "-v")
DATA = 128


def _as(exact: GaussianMixture, truth: str, said: str) -> Wrapped:
    def f(x: Tensor, t: Tensor) -> Tensor:
        value = exact(x, t.double()).to(truth.lstrip("-"))
        return -value if truth.startswith("-") else value

    return wrap(f, exact.process, said, exact.shape)


def _named(seed: int) -> Outcome:
    """Over all pairs of a true and another stated convention."""
    exact = wide(VP())
    data, good = exact.sample(DATA, seed), []
    for truth, said in itertools.permutations(KINDS, 2):
        report = check_denoiser(_as(exact, truth, said), data, seed=seed)
        good.append(not report.ok and report.advice.startswith(f"looks like predicts={truth!r}:"))
    about = f"all pairs of {', '.join(KINDS)} on an exact mixture under VP, {DATA} data"
    unit = "share of wrong pairs whose right kind is named"
    return Outcome(sum(good) / len(good), 1 / (len(KINDS) - 1), "a guess among the others", about, "high", unit)


def _accused(seed: int) -> Outcome:
    exact = wide(VP())
    data = exact.sample(DATA, seed)
    bad = [not check_denoiser(_as(exact, kind, kind), data, seed=seed).ok for kind in KINDS]
    about = f"each of {', '.join(KINDS)} stated rightly on an exact mixture under VP, {DATA} data"
    return Outcome(sum(bad) / len(bad), 0.05, "a tolerance", about, unit="share of right ones accused")


CLAIMS = (
    Claim("check-denoiser", "a wrong kind or sign is found and the right one named", _named, quick=False),
    Claim("check-denoiser", "a right one is not accused", _accused, quick=False),
)
