"""Claims of fewstep/sampling/dpmpp.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.problems import digits, duel, exact, first_order_start, order, orders, stochastic_duel
from fewstep.processes.vp import VP


def _start(seed: int) -> Outcome:
    ours, theirs = order(VP(), "dpmpp-3m", seed), order(VP(), first_order_start, seed)
    return Outcome(
        ours,
        theirs,
        "the same solver, its orders rising from 1 with nothing corrected",
        "96 and 192 steps, smooth 5-component mixture, vp",
        better="high",
        unit="measured order",
    )


CLAIMS = (
    Claim("dpmpp-2m", "is of order 2", lambda seed: orders(VP(), "dpmpp-2m", seed)),
    Claim(
        "dpmpp-2m",
        "beats ddim at 10 evaluations",
        lambda seed: duel(exact(VP(), seed), "dpmpp-2m", "ddim", 10, "log-snr"),
    ),
    Claim(
        "dpmpp-2m",
        "beats ddim at 8 evaluations on the embedded digits",
        lambda seed: duel(digits(seed), "dpmpp-2m", "ddim", 8, "log-snr"),
        quick=False,
    ),
    Claim("dpmpp-3m", "is of order 3", lambda seed: orders(VP(), "dpmpp-3m", seed)),
    Claim("dpmpp-3m", "the corrected start is what makes it order 3", _start),
    Claim(
        "dpmpp-3m",
        "beats dpmpp-2m at 15 evaluations",
        lambda seed: duel(exact(VP(), seed), "dpmpp-3m", "dpmpp-2m", 15, "log-snr"),
    ),
    Claim("dpmpp-2s", "is of order 2", lambda seed: orders(VP(), "dpmpp-2s", seed)),
    Claim(
        "dpmpp-2s",
        "beats ddim at 10 evaluations",
        lambda seed: duel(exact(VP(), seed), "dpmpp-2s", "ddim", 10, "log-snr"),
    ),
    Claim("dpmpp-3s", "is of order 3", lambda seed: orders(VP(), "dpmpp-3s", seed)),
    Claim(
        "dpmpp-3s",
        "beats dpmpp-2s at 16 evaluations",
        lambda seed: duel(exact(VP(), seed), "dpmpp-3s", "dpmpp-2s", 16, "log-snr"),
    ),
    Claim(
        "dpmpp-2m-sde",
        "is nearer to the data's distribution than ancestral sampling at 20 evaluations",
        lambda seed: stochastic_duel(VP(), "dpmpp-2m-sde", "ddpm", 20, "log-snr", seed),
    ),
    Claim(
        "dpmpp-3m-sde",
        "is nearer to the data's distribution than ancestral sampling at 20 evaluations",
        lambda seed: stochastic_duel(VP(), "dpmpp-3m-sde", "ddpm", 20, "log-snr", seed),
    ),
    Claim(
        "dpmpp-2s-sde",
        "is nearer to the data's distribution than ancestral sampling at 20 evaluations",
        lambda seed: stochastic_duel(VP(), "dpmpp-2s-sde", "ddpm", 20, "log-snr", seed),
    ),
)
