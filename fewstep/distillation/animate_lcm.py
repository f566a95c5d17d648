"""AnimateLCM: pictures and motion made consistent one after the other, in weights of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.data.dataset import Dataset
from fewstep.distillation.latent import GRID, Latent, Skips
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.pairs import AVERAGE
from fewstep.distillation.teacher import BACKWARD, FORWARD
from fewstep.distillation.video import clip_network, opened_stills, still_denoiser
from fewstep.networks.temporal import TemporalUNet
from fewstep.training.checkpoint import part

METHODS = (
    Method(
        "animate-lcm",
        paper="AnimateLCM: Computation-Efficient Personalized Style Video Generation without Personalized Video Data"
        " (Wang et al., 2024)",
        arxiv="2402.00769",
        claim="pictures first, then motion: better clips for the same updates than both at once",
        use="Animate",
        facts={
            "student": "jump",
            "data": True,
            "pairing": True,
            "players": ("spatial", "student"),
            "steps": "any",
            "clips": True,
            "small": {"rank": 2, "fade": 2},
        },
    ),
)


class Animate(Skips):
    """AnimateLCM (Wang et al., section 4.1): `lcm` on single pictures, then on clips, each in weights of its own.

    First a low-rank adapter of the network of pictures learns from stills alone, in `spatial` of the iterations. Then
    the layers of time learn from clips, and the adapter, which stays, enters the online network by a share that rises
    to 1 over `fade` iterations; the target's side, the average of the online one, begins without it and follows. So
    the two are not at odds from the beginning, and what was learnt of pictures is not unlearnt on clips.

    The student is the plain network, the adapter in its weights.

    Args:
        rank: of the adapter. spatial: share of the iterations on pictures. fade: iterations, at most half of those on
            clips. joint: both at once on clips all the time, the baseline; `spatial` and `fade` are then without use.
        stills: pictures (`video.opened_stills`), by default the frames of the data.
        levels, stride, substeps, average, distance, guidance: as `lcm`.

    Raises:
        ValueError: a base that makes no clips, a rank or fade below 1, a share outside (0, 1), stills of another size,
            no data, and what `lcm` raises.
    """

    def __init__(
        self, setting: Setting, rank: int = 8, spatial: float = 0.5, fade: int = 100, joint: bool = False,
        stills: str | Dataset | None = None, levels: int = GRID, stride: int | None = None, substeps: int = 1,
        average: float = AVERAGE, distance: str = "pseudo-huber", guidance: float | Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        if rank < 1 or fade < 1 or not 0 < spatial < 1:
            raise ValueError(
                f"rank and fade must be at least 1 and spatial a share in (0, 1), got {rank}, {fade} and {spatial}"
            )
        clip_network(setting)
        super().__init__(setting, levels, stride, substeps, average, distance, guidance, "data")
        self.joint, self.spatial, self.fade = joint, spatial, fade
        path, network = next(
            (name, module) for name, module in self.student.named_modules() if isinstance(module, TemporalUNet)
        )
        network.freeze()
        network.frozen = clip_network(setting).frozen  # that of the student as it is saved
        still = still_denoiser(setting)
        own = replace(
            setting, teacher=still, base=still, data=opened_stills(stills, setting), lora=rank, first={}, given={},
            claimed=0.0, free=None,
        )  # fmt: skip
        self.pictures = Latent(own, levels, stride, substeps, average, distance, guidance)
        self.prefix = f"{path}." if path else ""
        kept = dict(network.named_parameters())
        self.plain = {name: kept[name].detach().clone() for name in self.deltas()}  # weights without the adapter
        self.f = self.online  # type: ignore[assignment]  # called as the student is, with the adapter's weights
        self.shares = [0.0]  # of the adapter on the target's side, by iteration on clips
        adapter, clips = self.pictures.players["student"], setting.player(self.student, self.loss, average=True)
        adapter.lr, adapter.average = clips.lr, None
        self.players = {"student": clips, "spatial": adapter}
        self._take_turns()

    # Turns

    @property
    def first(self) -> int:
        """Iterations on pictures."""
        return 0 if self.joint else max(1, round(self.spatial * self.setting.iterations))

    @property
    def on_clips(self) -> bool:
        return self.setting.step >= self.first

    def _take_turns(self) -> None:
        """Lets each player learn in its part; jointly, the adapter gets its gradient from the pass on clips."""
        clips, adapter = self.players["student"], self.players["spatial"]
        of_clips, of_pictures = clips.backward, adapter.backward
        pictures = adapter.loss
        shared: list[Tensor] = []

        def gradients(losses: Tensor, drawn: Batch, parameters: Sequence[nn.Parameter]) -> None:
            if not losses.requires_grad:
                return
            every = [*parameters, *(adapter.parameters if self.joint else ())]
            _backward(of_clips, losses, drawn, every)
            if self.joint:
                shared[:] = [parameter.grad for parameter in adapter.parameters if parameter.grad is not None]

        def adapters(losses: Tensor, drawn: Batch, parameters: Sequence[nn.Parameter]) -> None:
            if self.joint:
                for parameter, gradient in zip(parameters, shared, strict=True):
                    parameter.grad = gradient
            elif losses.requires_grad:
                _backward(of_pictures, losses, drawn, parameters)

        def of_stills(drawn: Batch) -> Tensor:
            if self.on_clips:
                return drawn["t"].new_zeros(len(drawn["t"]))
            self.pictures.setting.step = self.setting.step
            return pictures(drawn)

        clips.backward, adapter.backward, adapter.loss = gradients, adapters, of_stills

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        return super().draw(batch, generator) if self.on_clips else self.pictures.draw(batch, generator)

    def loss(self, drawn: Batch) -> Tensor:
        self.write()
        return super().loss(drawn) if self.on_clips else drawn["t"].new_zeros(len(drawn["t"]))

    # The adapter in the network of clips

    def deltas(self) -> dict[str, Tensor]:
        """What the adapter adds to each weight of the network of pictures, with its gradient."""
        layers = {name: module for name, module in self.pictures.student.named_modules() if hasattr(module, "lora_A")}
        named = {name.split("network.", 1)[1]: module for name, module in layers.items()}
        return {f"{name}.weight": module.get_delta_weight("default") for name, module in named.items()}

    def share(self) -> float:
        """Of the adapter in the online network, in this iteration."""
        if self.joint or not self.on_clips:
            return 1.0
        return self._share(self.setting.step - self.first)

    def _share(self, k: int) -> float:
        rising = max(1, min(self.fade, (self.setting.iterations - self.first) // 2))
        return min(1.0, (k + 1) / rising)

    def behind_share(self) -> float:
        """Of the adapter on the target's side: the average of the online network's, from 0."""
        if self.joint:
            return 1.0
        k = self.setting.step - self.first
        while len(self.shares) <= k:
            last = len(self.shares) - 1
            self.shares.append(self.average * self.shares[-1] + (1 - self.average) * self._share(last))
        return self.shares[k]

    def weights(self, share: float) -> dict[str, Tensor]:
        """The weights of the network of pictures with a share of the adapter, by their names in the student."""
        return {self.prefix + name: self.plain[name] + share * delta for name, delta in self.deltas().items()}

    @torch.no_grad()
    def write(self) -> None:
        """Puts the adapter into the student, as the online network has it."""
        own = dict(self.student.named_parameters())
        for name, weight in self.weights(self.share()).items():
            own[name].copy_(weight)

    def ask(self, model: Denoiser, weights: Mapping[str, Tensor], x: Tensor, t: Tensor, condition: Any) -> Prediction:
        """A model's answer with other weights of pictures; counted."""
        answer: Prediction = functional_call(model, dict(weights), (x, t), dict(condition))
        self.setting.count.evaluations += len(x) * (BACKWARD if answer.value.requires_grad else FORWARD)
        return answer

    def online(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        """The online network, through which the adapter has its gradient where both train at once."""
        weights = self.weights(self.share())
        return self.ask(self.student, weights if self.joint else _detached(weights), x, t, condition)

    @torch.no_grad()
    def target(self, x: Tensor, s: Tensor, drawn: Batch) -> Tensor:
        model: Any = self.behind.at(self.decay())  # counts its calls
        x0 = self.ask(model.model, self.weights(self.behind_share()), x, s, drawn["condition"]).x0
        clean = (s == self.setting.process.t_zero).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(clean, x, x0)

    def copies(self) -> list[nn.Module]:
        return [*super().copies(), *self.pictures.copies()]

    def state(self) -> dict[str, Tensor]:
        own = dict(self.student.named_parameters())
        found = {f"written.{name}": own[self.prefix + name].detach().clone() for name in self.plain}
        inner = {f"pictures.{name}": value for name, value in self.pictures.state().items()}
        return found | inner | super().state()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        own = dict(self.student.named_parameters())
        with torch.no_grad():
            for name, value in part(tensors, "written").items():
                own[self.prefix + name].copy_(value)
        self.pictures.restore(part(tensors, "pictures"))
        super().restore(tensors)


def _detached(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in weights.items()}


def _backward(inner: Any, losses: Tensor, drawn: Batch, parameters: Sequence[nn.Parameter]) -> None:
    if inner is None:
        losses.mean().backward(inputs=list(parameters))
    else:
        inner(losses, drawn, parameters)
