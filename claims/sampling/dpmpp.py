"""Claims of fewstep/sampling/dpmpp.py."""

from __future__ import annotations

from claims.common import VP, Claim, Outcome
from claims.duels import duel, orders, stochastic_duel
from claims.problems import first_order_start, order


def _start(seed: int) -> Outcome:
    ours, theirs = order(VP(), "dpmpp-3m", seed), order(VP(), first_order_start, seed)
    against = "the same solver, its orders rising from 1 with nothing corrected"
    about = "96 and 192 steps, smooth 5-component mixture, vp"
    return Outcome(ours, theirs, against, about, better="high", unit="measured order")


CLAIMS = (
    *(Claim(f"dpmpp-{p}{s}", f"is of order {p}", orders(VP(), f"dpmpp-{p}{s}")) for s in "ms" for p in (2, 3)),
    Claim("dpmpp-2m", "beats ddim at 10 evaluations", duel(VP(), "dpmpp-2m", "ddim", 10, "log-snr")),
    Claim("dpmpp-2m", "beats ddim at 8 evaluations on the embedded digits",
          duel("digits", "dpmpp-2m", "ddim", 8, "log-snr"), quick=False),
    Claim("dpmpp-3m", "the corrected start is what makes it order 3", _start),
    Claim("dpmpp-3m", "beats dpmpp-2m at 15 evaluations", duel(VP(), "dpmpp-3m", "dpmpp-2m", 15, "log-snr")),
    Claim("dpmpp-2s", "beats ddim at 10 evaluations", duel(VP(), "dpmpp-2s", "ddim", 10, "log-snr")),
    Claim("dpmpp-3s", "beats dpmpp-2s at 16 evaluations", duel(VP(), "dpmpp-3s", "dpmpp-2s", 16, "log-snr")),
    *(Claim(sde, "is nearer to the data's distribution than ancestral sampling at 20 evaluations",
            stochastic_duel(VP(), sde, "ddpm", 20, "log-snr"))
      for sde in ("dpmpp-2m-sde", "dpmpp-3m-sde", "dpmpp-2s-sde")),
)  # fmt: skip
