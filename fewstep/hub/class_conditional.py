"""DiT: a transformer on latents with class labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fewstep.conditions.label import Label
from fewstep.core.condition import Condition
from fewstep.core.methods import Method
from fewstep.networks.blocks import transformer_blocks
from fewstep.networks.surgery import Block

METHODS = (
    Method(
        "dit-pipeline",
        kind="family",
        paper="Scalable Diffusion Models with Transformers (Peebles and Xie, 2023)",
        arxiv="2212.09748",
        claim="DiT pipelines: a label, its null class for guidance; the learned variance is ignored",
        use="ClassConditional",
        facts={"pipelines": ("DiTPipeline",)},
    ),
)


class ClassConditional:
    """DiTTransformer2DModel `(x, t, label)`; no label is the class after the last."""

    component = "transformer"
    largest = None

    def __init__(self, pipeline: Any):
        config = pipeline.transformer.config
        self.size, self.channels, self.multiple = (config.sample_size,) * 2, config.in_channels, config.patch_size
        self.conditions: Mapping[str, Condition] = {"label": Label(config.num_embeds_ada_norm)}

    def __call__(self, network: nn.Module, x: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return network(x, timestep=time, class_labels=condition["label"], return_dict=False)[0]

    def blocks(self, network: nn.Module) -> Mapping[str, Block]:
        return transformer_blocks(network)

    def grid(self, shape: tuple[int, ...]) -> None:
        return None
