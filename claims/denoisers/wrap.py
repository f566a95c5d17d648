"""Claims of fewstep/denoisers/wrap.py."""

from __future__ import annotations

from torch import Tensor

from claims.common import EDM, F64, Claim, Noise, Outcome, plan
from claims.problems import wide
from fewstep.core.prediction import KINDS
from fewstep.denoisers.wrap import wrap


def _same(seed: int) -> Outcome:
    """Largest difference of samples between a denoiser and itself as a function of each kind and time."""
    exact = wide(EDM())
    noise = Noise(seed).normal(0, (16, *exact.shape), "cpu", F64)
    made = plan(exact.process, "dpmpp-2m", steps=8, timesteps="karras")
    wanted, worst = made(exact, noise, dtype=F64), 0.0
    for kind in KINDS:

        def f(x: Tensor, u: Tensor, kind: str = kind) -> Tensor:  # EDM's c_noise, to full precision
            return exact(x, (4 * u).exp()).to(kind)

        drawn = made(wrap(f, exact.process, kind, exact.shape, time="c_noise"), noise, dtype=F64)
        worst = max(worst, float((drawn - wanted).abs().max()))
    about = (
        "a mixture in twelve dimensions as a function of c_noise that answers each of six kinds, 8 steps of dpmpp-2m"
    )
    return Outcome(worst, 1e-9, "a tolerance", about, unit="largest difference of 16 samples")


CLAIMS = (Claim("wrap", "a function of another kind and time draws the same samples", _same),)
