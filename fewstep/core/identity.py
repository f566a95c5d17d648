"""Which model it is: checksums of its weights and of what it is made of."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from fewstep.core.config import config
from fewstep.core.denoiser import Denoiser


def weights_sum(model: nn.Module) -> str:
    """A checksum of a model's weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def identity(model: Denoiser) -> str:
    """16 hexadecimal digits that tell a model from others: by its configuration (one that has none: by what it says of
    itself) and its weights."""
    try:
        made = config(model, {})
    except ValueError:
        made = model.describe()
    text = json.dumps(made, sort_keys=True, default=str)
    return hashlib.sha256(f"{text} {weights_sum(model)}".encode()).hexdigest()[:16]
