"""Claims of the reading of noise levels along a run."""

from __future__ import annotations

from claims.common import VP, Claim, Outcome, compared, plan
from claims.guidance.learned import N, six
from fewstep.sampling.noise_shift import noise_shift


def _reads(seed: int) -> Outcome:
    """The shift of a run that starts with too much noise beside that of one that starts right, first evaluation."""
    model, made = six(16), plan(VP(), "ddpm", timesteps=[0.5, 0.3, 0.0])
    found = noise_shift(model, made, N, seed=seed)
    return compared([found.shift[0] - found.true[0], 0.0], "no shift",
                    "a run begun at log-SNR 0 from pure noise, which has no data in it; mixture in 16 dimensions",
                    unit="shift beyond that of true noised data, in log-SNR")  # fmt: skip


CLAIMS = (Claim("noise-shift", "a run begun with too much noise is seen to have it", _reads),)
