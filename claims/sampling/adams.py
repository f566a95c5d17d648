"""Claims of fewstep/sampling/adams.py."""

from __future__ import annotations

from claims.common import EDM, VP, Claim, Flow
from claims.duels import duel, orders

CLAIMS = (
    Claim("deis", "orders 1 to 4 are as stated", orders(VP(), "deis")),
    Claim("deis", "a polynomial for eps beats a constant one at 10 evaluations, on the quadratic times of the paper",
          duel(VP(), "deis-3", "ddim", 10, "quadratic")),
    Claim("ab", "orders 1 to 5 are as stated", orders(VP(), "ab")),
    Claim("ab", "order 3 beats order 1 at 10 evaluations", duel(VP(), "ab-3", "ddim", 10, "log-snr")),
    Claim("lms", "orders 1 to 4 are as stated", orders(EDM(), "lms")),
    Claim("lms", "order 4 beats Euler at 20 evaluations on EDM's process and times",
          duel(EDM(), "lms-4", "euler", 20, "karras")),
    Claim("ab-x0", "orders 1 to 4 are as stated", orders(VP(), "ab-x0")),
    Claim("ab-x0", "order 2 beats order 1 at 10 evaluations", duel(VP(), "ab-x0-2", "ddim", 10, "log-snr")),
    Claim("ab-x0", "order 2 beats the midpoint form of the same, dpmpp-2m, at 10 evaluations",
          duel(VP(), "ab-x0-2", "dpmpp-2m", 10, "log-snr")),
    Claim("ab-v", "orders 1 to 4 are as stated", orders(VP(), "ab-v")),
    Claim("ab-v", "order 2 beats ddim at 10 evaluations", duel(VP(), "ab-v-2", "ddim", 10, "log-snr")),
    Claim("ab-v", "order 2 in the angle beats order 2 on the flow's velocity at 10 evaluations under VP",
          duel(VP(), "ab-v-2", "vab-2", 10, "log-snr")),
    Claim("vab", "orders 1 to 4 are as stated", orders(Flow(), "vab")),
    Claim("vab", "order 3 on the velocity beats dpmpp-2m at 5 evaluations",
          duel(VP(), "vab-3", "dpmpp-2m", 5, "log-snr")),
    Claim("vab", "order 2 beats Euler at 10 evaluations on the flow with equal steps",
          duel(Flow(), "vab-2", "euler", 10, "uniform")),
)  # fmt: skip
