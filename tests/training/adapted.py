"""Small networks of pictures with labels, and adapters that do something: what tests of adapters share."""

from __future__ import annotations

import torch
from torch import nn

from fewstep.core.methods import find
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.ve import EDM
from fewstep.training.lora import lora_parameters

SHAPE = (2, 8, 4)


def network(name: str, width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    if name == "unet":
        made = find("unet")(channels=2, size=(8, 4), width=(width, 12), attention=(4,), classes=3)
    else:
        made = find("dit")(channels=2, size=(8, 4), width=2 * width, depth=2, patch=2, classes=3)
    for parameter in made.parameters():  # the branches start at zero: nothing would show
        nn.init.normal_(parameter, std=0.2)
    return made


def denoiser(name: str = "unet", width: int = 8) -> NetworkDenoiser:
    return NetworkDenoiser(network(name, width), EDM(), "x0", SHAPE, precondition="edm").eval()


def answer(model: NetworkDenoiser) -> torch.Tensor:
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(x, torch.tensor([0.3, 1.0, 4.0]), label=torch.tensor([0, 2, 3])).x0


def disturbed(model: NetworkDenoiser, rank: int = 3) -> NetworkDenoiser:
    """With an adapter that does something."""
    made = find("lora")(model, rank)
    for number, parameter in enumerate(lora_parameters(made)):
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
    return made
