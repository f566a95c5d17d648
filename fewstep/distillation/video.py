"""Motion consistency: consistency of what moves alone, while single frames are judged beside sharp stills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.methods import Method
from fewstep.data.dataset import Dataset, frames_of
from fewstep.data.open import open_data
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.discriminator import Discriminator, sides
from fewstep.distillation.latent import GRID, Skips
from fewstep.distillation.levels import at_shares
from fewstep.distillation.matching import HIGH, LOW
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.motion import LEARNED, Projection, representation
from fewstep.distillation.pairs import AVERAGE
from fewstep.distillation.teacher import BACKWARD, FORWARD
from fewstep.networks.temporal import TemporalUNet

METHODS = (
    Method(
        "mcm",
        paper="Motion Consistency Model: Accelerating Video Diffusion with Disentangled Motion-Appearance Distillation"
        " (Zhai et al., 2024)",
        arxiv="2406.06890",
        claim="clips move as the teacher's do, and their frames are as sharp as the stills",
        use="MotionConsistency",
        facts={
            "student": "jump",
            "data": True,
            "pairing": True,
            "players": ("student", "projection", "discriminator"),
            "steps": "any",
            "clips": True,
            "small": {"mix": 0.5},
        },
    ),
)


def clip_network(setting: Setting) -> TemporalUNet:
    """The base's network, which has pictures inside. ValueError for one of other samples."""
    base = setting.base
    network = base.network if isinstance(base, NetworkDenoiser) else None
    if not isinstance(network, TemporalUNet):
        raise ValueError(
            f"this method is for models of clips, whose network is a 'temporal-unet', and this one is"
            f" {type(base if network is None else network).__name__}, which makes still samples"
        )
    return network


def still_denoiser(setting: Setting) -> NetworkDenoiser:
    """The base's network of pictures as a denoiser of single frames, on the base's own weights."""
    network, base = clip_network(setting), setting.base
    assert isinstance(base, NetworkDenoiser)
    return NetworkDenoiser(
        network.still(), base.process, base.predicts, setting.shape[1:], base.conditions, base.precondition,
        base.data_std, base.value_range,
    )  # fmt: skip


def opened_stills(stills: str | Dataset | None, setting: Setting) -> Dataset:
    """Sharp pictures by name, or of a data set; those of clips are their frames; None for the frames of the data.

    Raises:
        ValueError: pictures of another size than the frames.
    """
    found = setting.opened() if stills is None else open_data(stills) if isinstance(stills, str) else stills
    if found.spec.shape[-3:] != setting.shape[-3:]:
        raise ValueError(f"frames are {setting.shape[-3:]}, the stills {found.spec.name!r} are {found.spec.shape[-3:]}")
    return frames_of(found) if len(found.spec.shape) == 4 else found


class MotionConsistency(Skips):
    """MCM: `d(R f(x_t, t), R f-(x_s, s))` with R what moves (`distillation.motion`), plus a discriminator of frames.

    The discriminator's heads stand on the frozen network of pictures inside the base's own; it tells one frame of each
    of the student's answers from stills, both diffused to one drawn level, without conditions. States are data with
    noise, `mix` of them the student's own clips with noise instead, made in its few steps without gradient, so that it
    is also trained where it will be used (the paper's mixed trajectories).

    "learned" are patterns over time, orthonormal and without the mean, that a player turns to where the two sides
    differ most: a projection that went down the student's own loss could end it by seeing nothing.

    Args:
        motion: "raw", "difference", "low", "high", "correlation" or "learned". stills: of the discriminator
            (`opened_stills`). gan: its weight, 0 for none. mix: share of states from the student's own clips.
        levels, stride, substeps, average, distance, guidance: as `lcm`. features: names of the picture network's blocks
            that heads read. adversarial: "non-saturating" or "hinge".

    Raises:
        ValueError: a base that makes no clips, an unknown name, a weight below 0, a share outside [0, 1], stills of
            another size, no data, and what `lcm` raises.
    """

    def __init__(
        self, setting: Setting, motion: str = LEARNED, stills: str | Dataset | None = None, gan: float = 0.1,
        mix: float = 0.5, levels: int = GRID, stride: int | None = None, substeps: int = 1, average: float = AVERAGE,
        distance: str = "pseudo-huber", guidance: float | Sequence[float] | None = None,
        features: Sequence[str] | None = None, adversarial: str = "non-saturating",
    ) -> None:  # fmt: skip
        if gan < 0 or not 0 <= mix <= 1:
            raise ValueError(f"gan must be at least 0 and mix a share from 0 to 1, got {gan} and {mix}")
        clip_network(setting)
        found = representation(motion, setting.shape)
        super().__init__(setting, levels, stride, substeps, average, distance, guidance, "data")
        self.gan, self.mix = gan, mix
        self.motion = found.to(setting.device) if isinstance(found, nn.Module) else found
        shares = torch.arange(setting.steps, dtype=torch.float64) / setting.steps
        self.steps = at_shares(setting.process, setting.start, shares).tolist()
        if isinstance(self.motion, Projection):
            self.players["projection"] = setting.player(self.motion, self.missed)
        if gan:
            self.stills = opened_stills(stills, setting)
            self.of_critic, self.of_student = sides(adversarial)
            frozen = still_denoiser(setting).eval()
            self.heads = Discriminator(frozen, setting.shape[1:], features, {}, seed=setting.seed)
            self.players["discriminator"] = setting.player(self.heads, self.critic_loss)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        setting = self.setting
        drawn = super().draw(batch, generator)
        if self.mix:
            drawn["own"] = setting.uniform(batch, generator) < self.mix
            drawn["z"] = setting.noise(batch, generator, setting.steps)
        if self.gan:
            rows = torch.randint(len(self.stills), (batch,), generator=generator)
            drawn["frame"] = torch.randint(setting.shape[0], (batch,), generator=generator)
            drawn["still"] = self.stills[rows][0].to(setting.dtype)
            drawn["level"] = at_shares(
                setting.process, setting.start, LOW + (HIGH - LOW) * setting.uniform(batch, generator)
            )
            noises = (setting.noise(batch, generator), setting.noise(batch, generator))
            drawn["eps_made"], drawn["eps_still"] = (one_frame(eps, drawn["frame"]) for eps in noises)
        return drawn

    @torch.no_grad()
    def own(self, drawn: Batch) -> Tensor:
        """The student's clips, in its steps."""
        setting, z, f = self.setting, drawn["z"], self.f
        x = setting.begin(z[:, 0])
        for k, t in enumerate(self.steps):
            x0 = f(x, setting.times(t, len(x)), **drawn["condition"]).x0
            if k + 1 < len(self.steps):
                x = setting.noised(x0, z[:, k + 1], setting.times(self.steps[k + 1], len(x)))
        return x0

    def mixed(self, drawn: Batch) -> Batch:
        """The batch with the student's own clips in place of some of the data."""
        if not self.mix:
            return drawn
        own = drawn["own"].reshape(-1, *[1] * (drawn["x0"].ndim - 1))
        rest = {name: value for name, value in drawn.items() if name != "z"}
        return rest | {"x0": torch.where(own, self.own(drawn), drawn["x0"])}

    def pair(self, drawn: Batch) -> tuple[Tensor, Tensor]:
        return super().pair(self.mixed(drawn))

    def loss(self, drawn: Batch) -> Tensor:
        made, goal = self.pair(drawn)
        total = self.compared(self.motion(made), self.motion(goal), drawn)
        return total + self.gan * self.fooled(made, drawn) if self.gan else total

    def missed(self, drawn: Batch) -> Tensor:
        """What the projection goes down: less the distance of the two sides."""
        with torch.no_grad():
            made, goal = self.pair(drawn)
        return -self.compared(self.motion(made), self.motion(goal), drawn)

    def _logits(self, frames: Tensor, eps: Tensor, drawn: Batch) -> Tensor:
        logits: Tensor = self.heads(self.setting.noised(frames, eps, drawn["level"]), drawn["level"], {})
        return logits

    def fooled(self, made: Tensor, drawn: Batch) -> Tensor:
        """The student's side (B,) at a frame of each clip; a frame counts as its share of a clip."""
        self.setting.count.evaluations += BACKWARD * len(made) / self.setting.shape[0]
        return self.of_student(self._logits(one_frame(made, drawn["frame"]), drawn["eps_made"], drawn))

    def critic_loss(self, drawn: Batch) -> Tensor:
        """The discriminator's loss (B,)."""
        with torch.no_grad():
            made, _ = self.pair(drawn)
        self.setting.count.evaluations += 2 * FORWARD * len(made) / self.setting.shape[0]
        real = self._logits(drawn["still"], drawn["eps_still"], drawn)
        return self.of_critic(real, self._logits(one_frame(made, drawn["frame"]), drawn["eps_made"], drawn))


def one_frame(clips: Tensor, frame: Tensor) -> Tensor:
    """One frame (B,) of each clip (B, T, ...)."""
    found: Any = clips[torch.arange(len(clips), device=clips.device), frame]
    return found
