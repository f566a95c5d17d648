"""Claims of fewstep/sampling/unipc.py."""

from __future__ import annotations

from claims.common import VP, Claim
from claims.duels import duel, orders

CLAIMS = (
    Claim("unipc", "orders 1 to 4 are p + 1, as stated", orders(VP(), "unipc")),
    Claim("unipc", "order 2 with its corrector beats dpmpp-2m at 8 evaluations",
          duel(VP(), "unipc-2", "dpmpp-2m", 8, "log-snr")),
    Claim("unipc", "order 2 beats dpmpp-2m at 8 evaluations on the embedded digits",
          duel("digits", "unipc-2", "dpmpp-2m", 8, "log-snr"), quick=False),
)  # fmt: skip
