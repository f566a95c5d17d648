"""A diffusers pipeline as a denoiser: its network, its scheduler's process and grid, its autoencoder and prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.conditions.number import Number
from fewstep.conditions.prompt import complete
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, expand
from fewstep.hub.autoencoder import Autoencoder
from fewstep.hub.components import families, open_pipeline, unsupported
from fewstep.hub.inpainting import Pictured
from fewstep.hub.needs import check_channels
from fewstep.hub.saving import Saved
from fewstep.hub.schedules import open_schedule
from fewstep.networks.surgery import Block
from fewstep.sampling.build import fixed_plan

METHODS = (
    Method(
        "diffusers-pipeline",
        kind="import",
        claim="a diffusers pipeline as a denoiser: the same pictures from the same noise, with any solver",
        use="PipelineDenoiser",
    ),
)

# Schedulers of distilled models, which sample by "multistep-consistency", and the steps diffusers takes by default.
CONSISTENT = {"CMStochasticIterativeScheduler": 1, "LCMScheduler": 4, "FlowMatchLCMScheduler": 4}


class Family(Protocol):
    """What differs between families of pipelines: how the network is called, and its conditions.

    `component` names the network; `channels`, `size`, `multiple` and `largest` are the latents': how many, their usual
    height and width, what these must be a multiple of, and the largest they may be (None for any).
    """

    component: str
    channels: int
    size: tuple[int, int]
    multiple: int
    largest: int | None
    conditions: Mapping[str, Condition]

    def __call__(self, network: nn.Module, x: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The network's answer `(B, channels or more, H, W)` to latents x `(B, channels, H, W)` at `time` `(B,)`."""
        ...

    def blocks(self, network: nn.Module) -> Mapping[str, Block]:
        """The network's blocks by their paths in it, in the order in which they run."""
        ...

    def grid(self, shape: tuple[int, ...]) -> Callable[[int], Mapping[str, Any]] | None:
        """What the pipeline passes to its scheduler's `set_timesteps` besides the steps, by the number of steps."""
        ...


class PipelineDenoiser(Denoiser):
    """A diffusers pipeline whose class belongs to one of the families here.

    The process runs on the latents `shape` (on pixels where there is no autoencoder); `encode` and `decode` go through
    `autoencoder`, so that samples are pictures in [-1, 1]. `timesteps` is the grid of the pipeline's own scheduler.
    Output channels beyond those of the latents (a learned variance) are dropped. Where the scheduler clips or
    thresholds x0 the predictions are that x0.

    Args:
        pipeline: a diffusers pipeline object.
        size: height and width in pixels, or one number for both; by default those of the network's configuration.
        device: where it computes, for weights that are moved there only when they are used.
        long_prompts: prompts that are longer than the text encoder are read in several windows of its length; otherwise
            they are cut, with a warning that says what is lost.

    Raises:
        ValueError: an unsupported pipeline or scheduler class, a size that network or autoencoder cannot take, a
            network that needs more than the pipeline gives it, long prompts for a model that reads none.
    """

    def __init__(
        self,
        pipeline: Any,
        size: int | Sequence[int] | None = None,
        device: torch.device | None = None,
        long_prompts: bool = False,
    ):
        super().__init__()
        self.kind = type(pipeline).__name__
        if self.kind not in families():
            raise unsupported(self.kind)
        self.pipeline, self._device, self.long_prompts = pipeline, device, long_prompts
        family = families()[self.kind].load()
        if long_prompts and "long_prompts" not in inspect.signature(family).parameters:
            raise ValueError(f"a {self.kind} reads no prompts: leave long_prompts out")
        self.family: Family = family(pipeline, long_prompts=True) if long_prompts else family(pipeline)
        self.network = getattr(pipeline, self.family.component)
        rest = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.autoencoder = Autoencoder(rest.pop("vae")) if rest.get("vae") is not None else None
        if self.autoencoder is not None:
            check_channels(self.kind, self.family.component, self.family.channels, self.autoencoder.channels)
        self.parts = nn.ModuleDict({name: part for name, part in rest.items() if name != self.family.component})
        self.schedule = open_schedule(pipeline.scheduler)
        self.process, self.predicts = self.schedule.process, self.schedule.predicts
        self.conditions, self.value_range = dict(self.family.conditions), (-1.0, 1.0)
        self.shape = self._latents(size)
        if isinstance(self.family, Pictured) and self.autoencoder is not None:
            self.conditions |= self.family.pictures(self.shape, self.autoencoder)
        self.timesteps = self.schedule.rule(self.family.grid(self.shape))
        self.plan = self.schedule.plan
        if (steps := CONSISTENT.get(self.schedule.name)) and self.timesteps is not None:
            self.plan = fixed_plan(self.process, "multistep-consistency", steps, self.timesteps)
        self.eval()

    @property
    def saved(self) -> Saved:
        """The pipeline as it is saved."""
        return Saved(self.pipeline, {self.family.component: self.network})

    def config(self) -> dict[str, Any]:
        options = {"pipeline": self.saved, "size": self.pixels, "dtype": str(self.dtype).removeprefix("torch.")}
        return options | ({"long_prompts": True} if self.long_prompts else {})

    @classmethod
    def from_config(cls, options: dict[str, Any], state: Mapping[str, Tensor]) -> PipelineDenoiser:
        """From the folder in which the pipeline was saved."""
        pipeline = open_pipeline(options["pipeline"], getattr(torch, options["dtype"]))
        return cls(pipeline, options["size"], long_prompts=options.get("long_prompts", False))

    def tell_scale(self, low: float, high: float) -> None:
        """Lets the network take a scale of guidance in a range, as the condition `guidance`, by default its middle.

        Raises:
            ValueError: a family whose networks have no such input.
        """
        if (tell := getattr(self.family, "tell", None)) is None:
            raise ValueError(
                f"the network of a {self.kind} has no input for a scale of guidance that a student could be told: give"
                " one scale, or leave telling it out"
            )
        tell(self.network)
        self.conditions = {**self.conditions, "guidance": Number(low, high, (low + high) / 2)}

    def _latents(self, size: int | Sequence[int] | None) -> tuple[int, ...]:
        """The latents' shape for a size in pixels."""
        factor, family = self.autoencoder.factor if self.autoencoder else 1, self.family
        if size is None:
            return (family.channels, *family.size)
        if not isinstance(size, int) and len(size) != 2:
            raise ValueError(f"size must be a whole number or (height, width), got {size!r}")
        height, width = (size, size) if isinstance(size, int) else (int(n) for n in size)
        if min(height, width) < 1 or height % (multiple := factor * family.multiple) or width % multiple:
            raise ValueError(
                f"the size must be a multiple of {factor * family.multiple} in both directions"
                f" (the autoencoder's {factor} times the network's {family.multiple}), got {height} x {width}"
            )
        if family.largest is not None and max(height, width) > family.largest * factor:
            raise ValueError(
                f"this model makes at most {family.largest * factor} pixels a side, got {height} x {width}"
            )
        return (family.channels, height // factor, width // factor)

    def sized(self, height: int, width: int) -> PipelineDenoiser:
        """The same model, weights shared, for pictures of another size in pixels."""
        return PipelineDenoiser(self.pipeline, (height, width), self._device, self.long_prompts)

    def around(self, pipeline: Any) -> PipelineDenoiser:
        """The same for another pipeline of this one's class."""
        made = PipelineDenoiser(pipeline, self.pixels, self._device, self.long_prompts)
        if made.autoencoder is not None and self.autoencoder is not None:
            made.autoencoder.tile = self.autoencoder.tile
        made.plan, made.student = self.plan, self.student
        return made

    @property
    def pixels(self) -> list[int]:
        """Height and width of its pictures."""
        assert self.shape is not None
        factor = self.autoencoder.factor if self.autoencoder else 1
        return [self.shape[1] * factor, self.shape[2] * factor]

    @property
    def blocks(self) -> dict[str, Block]:
        """The network's blocks by their paths in it, in the order in which they run; see `blocks_of`."""
        found = self.family.blocks(self.network)
        return {name: replace(block, path=f"network.{block.path}") for name, block in found.items()}

    @property
    def device(self) -> torch.device:
        return self._device if self._device is not None else next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def describe(self) -> dict[str, Any]:
        about = {
            "pipeline": self.kind,
            "network": type(self.network).__name__,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "parameters in all": sum(p.numel() for p in self.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "scheduler": self.schedule.name,
            "predicts": self.predicts,
            "clips x0 to": self.schedule.clip,
            "process": _brief(self.process.config()),
            "size in pixels": self.pixels,
        }
        return super().describe() | about

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        """As for every denoiser; the further tensors of a prompt follow from `text`, and pictures are encoded."""
        named = complete(self.conditions, condition)
        if isinstance(self.family, Pictured) and self.family.reads and self.autoencoder is not None:
            named = self.family.encoded(named, self.conditions, self.autoencoder)
        return super().check_condition(named, batch, device)

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        return data if self.autoencoder is None else self.autoencoder.encode(data)

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return x if self.autoencoder is None else self.autoencoder.decode(x)

    def _call(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        dtype = self.dtype
        # The time stays in float32: bfloat16 has three digits, too few to distinguish two steps.
        time = self.schedule.network_time(t).to(torch.float64 if dtype == torch.float64 else torch.float32)
        answer = self.family(self.network, x.to(dtype), time.expand(x.shape[0]), condition)
        return answer[:, : self.family.channels].to(x.dtype)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        if self.schedule.kind in ("edm", "consistency"):
            c_in, c_skip, c_out = (expand(c, x) for c in self.schedule.scales(t))
            x0 = torch.addcmul(c_skip * x, c_out, self._call(c_in * x, t, condition))
            answer = Prediction(x0, "x0", x, t, self.process)
        else:
            answer = Prediction(self._call(x, t, condition), self.predicts, x, t, self.process)
        if not self.schedule.finishes:
            return answer
        return Prediction(self.schedule.finished(answer.x0, x, t), "x0", x, t, self.process)


def _brief(config: dict[str, Any]) -> dict[str, Any]:
    """A process's configuration, its table as its length and ends."""
    table = config.get("alphas_cumprod")
    return config | {"alphas_cumprod": f"{len(table)} steps, {table[0]:.6g} to {table[-1]:.6g}"} if table else config
