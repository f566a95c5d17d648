"""Claims of fewstep/data/digits.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from fewstep.data.open import open_data


def _whole(seed: int) -> Outcome:
    """scikit-learn's digits that are not in exactly one split with their own label."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    source = torch.from_numpy(bunch.images).float()[:, None] / 8 - 1
    parts = [open_data("digits", split=split) for split in ("train", "validation")]
    ours = (
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts if part.labels is not None]),
    )
    keys = [
        sorted(image.numpy().tobytes() + bytes([int(label)]) for image, label in zip(*pair, strict=True))
        for pair in (ours, (source, torch.from_numpy(bunch.target)))
    ]
    lost = sum(a != b for a, b in zip(*keys, strict=True))
    return Outcome(lost, 1, "demand", f"{len(source)} digits, pixels and labels compared bit by bit", unit="digits")


CLAIMS = (Claim("digits", "every digit of scikit-learn is in one split, to the bit, with its own label", _whole),)
