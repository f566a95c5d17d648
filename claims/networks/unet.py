"""Claims of fewstep/networks/unet.py."""

from __future__ import annotations

from claims.common import Claim, Outcome
from claims.short_run import STEPS, held_out, learns, network_identities, trained, weights
from claims.trained import UNet, fresh


def _alone(seed: int) -> Outcome:
    network = fresh(UNet, seed, channels=3, size=(8, 12), width=(8, 12, 16), attention=(2,), classes=7)
    return network_identities(network, (8, 12), seed)


def _against_dit(seed: int) -> Outcome:
    ours, theirs = trained("unet", seed), trained("dit", seed)
    about = f"{STEPS} steps of 64 digits, unet of {weights(ours)} and dit of {weights(theirs)} weights, equal settings"
    return Outcome(held_out(ours), held_out(theirs), "dit", about, unit="held-out loss")


CLAIMS = (
    Claim("unet", "a sample's answer does not depend on its batch, at any size that divides", _alone),
    Claim("unet", "learns the digits in a few seconds", learns("unet"), quick=False),
    Claim("unet", "learns 8x8 digits faster than a transformer, step for step", _against_dit, quick=False),
)
