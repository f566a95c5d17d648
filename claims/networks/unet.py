"""Claims of fewstep/networks/unet.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from claims.short_run import STEPS, held_out, learns, network_identities, trained, weights
from fewstep.networks.unet import UNet


def _alone(seed: int) -> Outcome:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(channels=3, size=(8, 12), width=(8, 12, 16), attention=(2,), classes=7)
    return network_identities(network, (8, 12), seed)


def _against_dit(seed: int) -> Outcome:
    ours, theirs = trained("unet", seed), trained("dit", seed)
    return Outcome(
        held_out(ours),
        held_out(theirs),
        "dit",
        f"{STEPS} steps of 64 digits, unet of {weights(ours)} and dit of {weights(theirs)} weights, equal settings",
        unit="held-out loss",
    )


CLAIMS = (
    Claim("unet", "a sample's answer does not depend on its batch, at any size that divides", _alone),
    Claim("unet", "learns the digits in a few seconds", lambda seed: learns("unet", seed), quick=False),
    Claim("unet", "learns 8x8 digits faster than a transformer, step for step", _against_dit, quick=False),
)
