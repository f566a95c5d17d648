"""Claims of fewstep/networks/dit.py."""

from __future__ import annotations

from claims.common import Claim, Outcome
from claims.short_run import learns, network_identities
from claims.trained import fresh
from fewstep.networks.dit import DiT


def _alone(seed: int) -> Outcome:
    network = fresh(DiT, seed, channels=3, size=(8, 12), patch=2, width=16, depth=2, classes=7)
    return network_identities(network, (8, 12), seed)


CLAIMS = (
    Claim("dit", "a sample's answer does not depend on its batch, on images that are not square", _alone),
    Claim("dit", "learns the digits in a few seconds", learns("dit"), quick=False),
)
