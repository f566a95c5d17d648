"""Model assembly (A-SDM): a UNet without some of its blocks, wider in kernels where they were, taught by the whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.arguments import check_whole
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.condconv import CondConv2d
from fewstep.networks.unet import UNet
from fewstep.training.fit import Draw, fit
from fewstep.training.noise_levels import NoiseLevels

METHODS = (
    Method(
        "assembly",
        paper="A-SDM: Accelerating Stable Diffusion through Model Assembly and Feature Inheritance Strategies"
        " (Zhu et al., 2024)",
        arxiv="2406.00210",
        claim="a UNet without some blocks, its convolutions there of several experts, taught by the whole one",
        use="assemble",
    ),
)


class Distillation(nn.Module):
    """The loss `|F_student - F_teacher|^2`, the mean over a sample's values, at noised samples.

    F is what the networks themselves answer, so with EDM's preconditioning every noise level has the same weight, as in
    training. The student is run without dropout: the teacher's answers have none.
    """

    teacher: NetworkDenoiser

    def __init__(self, student: NetworkDenoiser, teacher: NetworkDenoiser) -> None:
        super().__init__()
        self.student = student
        self.__dict__["teacher"] = teacher  # not in the table of submodules: it is not trained

    def forward(self, x0: Tensor, eps: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """(B,) from clean samples and noise (B, *shape), times (B,) and the conditions."""
        self.student.eval()  # `fit` has set it to train
        with torch.no_grad():
            wanted = self.teacher.loss_pair(x0, eps, t, **condition)[0]
        found = self.student.loss_pair(x0, eps, t, **condition)[0]
        return (found - wanted).square().flatten(1).mean(1)


def pruned(model: NetworkDenoiser, drop: Sequence[str], experts: int = 1, seed: int = 0) -> NetworkDenoiser:
    """The model with a UNet without these blocks, before any training, in evaluation mode.

    With `experts` above 1 the convolutions in the residual blocks that are left at the same levels have so many kernels
    (`CondConv2d`), copies of the plain ones: the answers are those of the model with the blocks left out. It shares
    nothing with the model, saves and loads; `network.drop` and `network.experts` are in its configuration.

    Args:
        drop: names of skippable blocks. seed: of the routings' first weights.

    Raises:
        ValueError: a model whose network is no UNet or has experts already, unknown blocks, experts below 1.
    """
    check_whole("experts", experts)
    network = model.network
    if not isinstance(network, UNet):
        raise ValueError(f"blocks are assembled anew in a UNet of fewstep's, got {type(network).__name__}")
    if network.experts > 1:
        raise ValueError(f"the convolutions of this UNet have {network.experts} kernels already")
    for name in drop:
        if name not in network.skippable:
            raise suggest("block", name, network.skippable)
    options = network.config() | {"drop": [*network.drop, *drop], "experts": experts}
    options.pop("network")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the first weights draw from the global generator
        made = UNet(**options)
        found = type(model)(**model.config() | {"network": made})
    made.to(model.device, model.dtype)
    plain, routed = network.state_dict(), [name for name, one in made.named_modules() if isinstance(one, CondConv2d)]
    for name in routed:
        layer = made.get_submodule(name)
        assert isinstance(layer, CondConv2d)
        layer.copy_kernel(plain[f"{name}.weight"], plain[f"{name}.bias"])
    own = made.state_dict()
    inside = tuple(f"{name}." for name in routed)
    made.load_state_dict({name: own[name] if name.startswith(inside) else plain[name] for name in own})
    return found.eval()


def assemble(
    model: NetworkDenoiser,
    drop: Sequence[str],
    data: Tensor | Draw,
    *,
    experts: int = 4,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
    levels: NoiseLevels | None = None,
    ema: float = 0.99,
    seed: int = 0,
    watch: Callable[[int, Tensor], Any] | None = None,
) -> NetworkDenoiser:
    """A smaller model, taught what the model answers: some blocks left out, experts in the convolutions beside them.

    Model assembly and multi-expert conditional convolution of Zhu et al.: `pruned`, trained by `fit` on `Distillation`.
    The kernels are mixed by the embedding of noise level and condition. The model itself stays as it was. Give it to
    `fewstep.denoisers.experts.Experts` together with the model to run each where it does well.

    Args:
        drop: names of skippable blocks of the model's UNet.
        data: samples (N, *shape) to be noised, the model's data or its own samples, or a function
            `(count, generator) -> (x0, conditions)`: it hides conditions where the model is to answer without them.
        experts: kernels of each convolution, 1 for plain ones.
        levels: the noise levels, by default uniform in t. steps, batch, lr, ema, seed, watch: as `fit`'s.

    Raises:
        ValueError: as `pruned` and `fit`. FloatingPointError: a loss that is not finite.
    """
    student, teacher = pruned(model, drop, experts, seed), copy.deepcopy(model).eval().requires_grad_(False)
    student.requires_grad_(True)
    return fit(
        student,
        data,
        steps=steps,
        batch=batch,
        lr=lr,
        objective=Distillation(student, teacher),
        levels=levels,
        ema=ema,
        seed=seed,
        watch=watch,
    )
