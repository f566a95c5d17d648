"""Pixel models on UNet2DModel: unconditional ones, consistency models, and those with a label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.label import Label
from fewstep.core.condition import Condition
from fewstep.core.methods import Method
from fewstep.hub.needs import check_channels, check_unet
from fewstep.networks.blocks import stage_blocks
from fewstep.networks.surgery import Block

METHODS = (
    Method(
        "unconditional-pipeline",
        kind="family",
        paper="Denoising Diffusion Probabilistic Models (Ho et al., 2020)",
        arxiv="2006.11239",
        claim="DDPM, DDIM and consistency pipelines on UNet2DModel, in pixels",
        use="Unconditional",
        facts={"pipelines": ("DDPMPipeline", "DDIMPipeline", "ConsistencyModelPipeline")},
    ),
)


@dataclass(frozen=True)
class Required(Label):
    """A label that the network always needs: its table of classes has no row for "no label"."""

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """`(batch,)` long; `ValueError` for None as well."""
        if value is None:
            raise ValueError(f"this model needs a {name} (0 to {self.classes - 1}): it was trained with one throughout")
        labels = super().check(name, value, batch, device)
        if int(labels.max()) == self.classes:
            raise ValueError(f"{name} {self.classes} is out of range: 0 to {self.classes - 1}")
        return labels


class Unconditional:
    """UNet2DModel `(x, t[, label])`, on pixels."""

    component = "unet"
    largest = None

    def __init__(self, pipeline: Any):
        config = pipeline.unet.config
        check_unet(type(pipeline).__name__, config)
        if config.out_channels < config.in_channels:
            check_channels(type(pipeline).__name__, "unet", config.in_channels, config.out_channels)
        size = config.sample_size
        self.size = (size, size) if isinstance(size, int) else tuple(size or (64, 64))
        self.channels, self.multiple = config.in_channels, 2 ** (len(config.block_out_channels) - 1)
        self.conditions: Mapping[str, Condition] = (
            {"label": Required(config.num_class_embeds)} if config.num_class_embeds else {}
        )

    def __call__(self, network: nn.Module, x: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return network(x, time, class_labels=condition.get("label"), return_dict=False)[0]

    def blocks(self, network: nn.Module) -> Mapping[str, Block]:
        return stage_blocks(network)

    def grid(self, shape: tuple[int, ...]) -> None:
        return None
