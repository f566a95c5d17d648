"""Claims of fewstep/denoisers/checks.py."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from claims.claim import Claim, Outcome
from claims.problems import wide
from fewstep.denoisers.checks import check_denoiser
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.wrap import Wrapped, wrap
from fewstep.processes.vp import VP

KINDS = ("x0", "eps", "v", "velocity", "-eps", "-v")
DATA = 128


def _as(exact: GaussianMixture, truth: str, said: str) -> Wrapped:
    def f(x: Tensor, t: Tensor) -> Tensor:
        value = exact(x, t.double()).to(truth.lstrip("-"))
        return -value if truth.startswith("-") else value

    return wrap(f, exact.process, said, exact.shape)


def _share(right: Callable[[str, str, str, bool], bool], seed: int, only: bool) -> float:
    """The share of pairs of conventions (true, stated) on which the check is right."""
    exact = wide(VP())
    data = exact.sample(DATA, seed)
    pairs = [(a, b) for a in KINDS for b in KINDS if (a == b) == only]
    good = 0
    for truth, said in pairs:
        report = check_denoiser(_as(exact, truth, said), data, seed=seed)
        good += right(truth, said, report.advice, report.ok)
    return good / len(pairs)


def _named(seed: int) -> Outcome:
    share = _share(
        lambda truth, said, advice, ok: not ok and advice.startswith(f"looks like predicts={truth!r}:"), seed, False
    )
    return Outcome(
        share,
        1 / (len(KINDS) - 1),
        "a guess among the others",
        f"all pairs of {', '.join(KINDS)} on an exact mixture under VP, {DATA} data",
        "high",
        "share of wrong pairs whose right kind is named",
    )


def _accused(seed: int) -> Outcome:
    share = _share(lambda truth, said, advice, ok: not ok, seed, True)
    return Outcome(
        share,
        0.05,
        "a tolerance",
        f"each of {', '.join(KINDS)} stated rightly on an exact mixture under VP, {DATA} data",
        unit="share of right ones accused",
    )


CLAIMS = (
    Claim("check-denoiser", "a wrong kind or sign is found and the right one named", _named, quick=False),
    Claim("check-denoiser", "a right one is not accused", _accused, quick=False),
)
