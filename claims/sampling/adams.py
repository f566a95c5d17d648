"""Claims of fewstep/sampling/adams.py."""

from __future__ import annotations

from claims.claim import Claim
from claims.problems import duel, exact, orders
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

CLAIMS = (
    Claim("deis", "orders 1 to 4 are as stated", lambda seed: orders(VP(), "deis", seed)),
    Claim(
        "deis",
        "a polynomial for eps beats a constant one at 10 evaluations, on the quadratic times of the paper",
        lambda seed: duel(exact(VP(), seed), "deis-3", "ddim", 10, "quadratic"),
    ),
    Claim("ab", "orders 1 to 5 are as stated", lambda seed: orders(VP(), "ab", seed)),
    Claim(
        "ab",
        "order 3 beats order 1 at 10 evaluations",
        lambda seed: duel(exact(VP(), seed), "ab-3", "ddim", 10, "log-snr"),
    ),
    Claim("lms", "orders 1 to 4 are as stated", lambda seed: orders(EDM(), "lms", seed)),
    Claim(
        "lms",
        "order 4 beats Euler at 20 evaluations on EDM's process and times",
        lambda seed: duel(exact(EDM(), seed), "lms-4", "euler", 20, "karras"),
    ),
    Claim("ab-x0", "orders 1 to 4 are as stated", lambda seed: orders(VP(), "ab-x0", seed)),
    Claim(
        "ab-x0",
        "order 2 beats order 1 at 10 evaluations",
        lambda seed: duel(exact(VP(), seed), "ab-x0-2", "ddim", 10, "log-snr"),
    ),
    Claim(
        "ab-x0",
        "order 2 beats the midpoint form of the same, dpmpp-2m, at 10 evaluations",
        lambda seed: duel(exact(VP(), seed), "ab-x0-2", "dpmpp-2m", 10, "log-snr"),
    ),
    Claim("ab-v", "orders 1 to 4 are as stated", lambda seed: orders(VP(), "ab-v", seed)),
    Claim(
        "ab-v",
        "order 2 beats ddim at 10 evaluations",
        lambda seed: duel(exact(VP(), seed), "ab-v-2", "ddim", 10, "log-snr"),
    ),
    Claim(
        "ab-v",
        "order 2 in the angle beats order 2 on the flow's velocity at 10 evaluations under VP",
        lambda seed: duel(exact(VP(), seed), "ab-v-2", "vab-2", 10, "log-snr"),
    ),
    Claim("vab", "orders 1 to 4 are as stated", lambda seed: orders(Flow(), "vab", seed)),
    Claim(
        "vab",
        "order 3 on the velocity beats dpmpp-2m at 5 evaluations",
        lambda seed: duel(exact(VP(), seed), "vab-3", "dpmpp-2m", 5, "log-snr"),
    ),
    Claim(
        "vab",
        "order 2 beats Euler at 10 evaluations on the flow with equal steps",
        lambda seed: duel(exact(Flow(), seed), "vab-2", "euler", 10, "uniform"),
    ),
)
