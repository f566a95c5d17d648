"""Start at an intermediate time, from diffused training samples reached by semi-discrete optimal transport."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.files import write
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.process import Process, process_from_config
from fewstep.core.started import Started, started
from fewstep.training.players import Player, optimise

METHODS = (
    Method(
        "dpm-ot",
        kind="start",
        paper="DPM-OT: A New Diffusion Probabilistic Model Based on Optimal Transport (Li et al., 2023)",
        arxiv="2307.11308",
        claim="noise transported to diffused training samples: few steps remain, and modes do not mix",
        use="OTStart",
    ),
)

FORMAT = "fewstep-ot-start-2"  # the atoms' noise is made again from the seed: another noise is another format
ROWS = 16_384  # points whose products with all atoms are held in memory at once
FAR = 1e9  # the centre of a cell that no draw fell into


class OTStart:
    """The optimal transport map from N(0, I) to n atoms of equal mass, `y_i = alpha_t x_i + sigma_t eps_i`.

    It is the gradient of Brenier's potential `u(z) = max_i <z, y_i> + h_i`: z goes to the atom that attains the
    maximum. The heights h are right when every cell has mass 1/n; they minimise the convex
    `E[u(z)] - mean(h)`, whose gradient is the cells' mass minus 1/n, estimated from draws of z.

    Args:
        process, t: where the atoms are; data `(n, *shape)`: clean training samples; seed: of their noise.

    Raises:
        ValueError: fewer than 2 samples, a t outside the process's clock.
    """

    def __init__(self, process: Process, data: Tensor, t: float, seed: int = 0):
        if data.ndim < 2 or len(data) < 2:
            raise ValueError(f"data must be (N, *shape) with N at least 2, got shape {tuple(data.shape)}")
        if not process.t_min <= t <= process.t_max:
            raise ValueError(f"t lies between {process.t_min:g} and {process.t_max:g}, got {t:g}")
        self.process, self.data, self.t, self.seed = process, data.detach(), float(t), seed
        noise = Noise(seed).normal(0, tuple(data.shape), data.device, data.dtype)
        self.atoms = (process.alpha(t) * data + process.sigma(t) * noise).flatten(1)
        self.heights = torch.zeros(len(data), dtype=torch.float64, device=data.device)
        self.centres = torch.zeros_like(self.atoms)
        self.fitted = False

    def fit(self, steps: int = 500, draws: int = 4096, rate: float | None = None, seed: int = 0) -> OTStart:
        """Find the heights with Adam on estimates of the cells' masses; return the start itself.

        In the last half of the steps the rate falls to zero, and four times as many points are drawn, so that the
        estimates' noise averages out. `rate` is by default a twentieth of the spread of `|y|^2 / 2`, the scale of the
        heights. Then the cells' centres of mass are measured.

        Raises:
            ValueError: counts below 1.
        """
        if steps < 1 or draws < 1:
            raise ValueError(f"steps and draws must be at least 1, got {steps} and {draws}")
        atoms, n = self.atoms.double(), len(self.atoms)
        # For atoms close together the heights are those of equal potentials, -|y|^2 / 2: begin there.
        start = -0.5 * atoms.square().sum(1)
        h = (start - start.mean()).clone()
        top = float(0.05 * h.std().clamp_min(1e-3 * float(atoms.std()))) if rate is None else rate
        heights, number = nn.ParameterList([nn.Parameter(h)]), itertools.count(1)
        generator = torch.Generator().manual_seed(seed)

        def late(k: int) -> float:
            return max(0.0, (k - steps / 2) / (steps / 2))

        def draw(count: int, generator: torch.Generator) -> Tensor:
            return self._points(4 * count if late(next(number)) else count, generator)

        def loss(points: Tensor) -> Tensor:
            gradient = self._masses(points, heights[0].detach()) - 1 / n
            # Scaled so that AdamW's epsilon, 1e-8, is a thousandth of an atom's mass.
            return 1e-5 * n * (gradient * heights[0]).sum()

        def pace(step: int) -> float:
            return top * 0.5 * (1 + math.cos(math.pi * late(step + 1)))

        player = Player(heights, loss, lr=pace, betas=(0.9, 0.999))
        optimise({"heights": player}, draw, steps=steps, batch=draws, seed=generator)
        h = heights[0].detach()
        self.heights = h - h.mean()
        self._measure_centres(16 * draws, generator)
        self.fitted = True
        return self

    def _cells(self, points: Tensor, heights: Tensor) -> Tensor:
        """The atom of each point `(B, D)`: `(B,)`, in the points' dtype."""
        atoms, h = self.atoms.to(points.dtype), heights.to(points.dtype)
        return torch.cat([(part @ atoms.T + h).argmax(1) for part in points.split(ROWS)])

    def _points(self, draws: int, generator: torch.Generator) -> Tensor:
        return torch.randn(draws, self.atoms.shape[1], generator=generator).to(self.atoms.device)

    def _masses(self, points: Tensor, heights: Tensor) -> Tensor:
        cells = self._cells(points, heights)
        return torch.bincount(cells, minlength=len(self.atoms)).double() / len(points)

    def masses(self, draws: int = 65_536, seed: int = 1) -> Tensor:
        """The cells' masses `(n,)`, estimated from fresh draws: 1/n each where the fit is right."""
        return self._masses(self._points(draws, torch.Generator().manual_seed(seed)), self.heights)

    def _measure_centres(self, draws: int, generator: torch.Generator) -> None:
        points = self._points(draws, generator)
        cells = self._cells(points, self.heights)
        count = torch.bincount(cells, minlength=len(self.atoms))
        total = torch.zeros(self.atoms.shape, device=points.device).index_add_(0, cells, points)
        # A cell into which no point fell gets a centre that nothing is near.
        mean = total / count.clamp_min(1).unsqueeze(1)
        self.centres = torch.where(count.unsqueeze(1) > 0, mean, torch.inf).to(self.atoms.dtype)

    def draw(self, noise: Tensor, neighbours: int = 1, angle: float = 0.5) -> Tensor:
        """States `(B, *shape)` at time t from noise `(B, *shape)`, a function of each noise alone.

        With `neighbours` above 1 the map is interpolated between atoms, so that it gives more than training samples:
        of the cells with the nearest centres of mass, those whose atoms x_j lie within `angle` (radians, between the
        clean samples, about the data's mean) of the point's own atom are mixed, in proportion to one over the distance
        to their centres. Cells that fail the test lie across a singularity of the map, where modes part, and are left
        out. Clean samples and noises are mixed separately, the noises with weights of unit norm, so that the state
        keeps the noise level of its time.
        """
        if not self.fitted:
            raise ValueError("the heights are not known yet: call fit() first")
        if tuple(noise.shape[1:]) != tuple(self.data.shape[1:]):
            raise ValueError(f"noise has samples of shape {tuple(noise.shape[1:])}, data {tuple(self.data.shape[1:])}")
        if not 1 <= neighbours <= len(self.atoms) or not 0 < angle <= math.pi:
            raise ValueError(
                f"neighbours lie between 1 and {len(self.atoms)}, the angle in (0, pi], got {neighbours} and {angle}"
            )
        points = noise.flatten(1).to(self.atoms.dtype)
        own = self._cells(points, self.heights)
        if neighbours == 1:
            return self.atoms[own].reshape(noise.shape).to(noise.dtype)
        distance = torch.cdist(points, self.centres.nan_to_num(posinf=FAR))
        mine = distance.gather(1, own.unsqueeze(1))
        # The point's own atom comes first, alone where its cell's centre is not known.
        near = torch.cat((own.unsqueeze(1), distance.topk(neighbours, largest=False).indices), 1)
        apart = torch.cat((torch.where(mine > FAR / 2, 0.0, mine), distance.gather(1, near[:, 1:])), 1)
        clean = self.data.flatten(1)
        directions = torch.nn.functional.normalize(clean - clean.mean(0), dim=1)
        cosine = (directions[near] * directions[own].unsqueeze(1)).sum(2)
        kept = cosine >= math.cos(angle)
        kept[:, 0], kept[:, 1:] = True, kept[:, 1:] & (near[:, 1:] != own.unsqueeze(1))
        weights = kept / apart.clamp_min(1e-12)
        weights = weights / weights.sum(1, keepdim=True)
        alpha, sigma = self.process.alpha(self.t), self.process.sigma(self.t)
        eps = ((self.atoms - alpha * clean) / sigma)[near]
        unit = weights / weights.norm(dim=1, keepdim=True)
        state = alpha * (weights.unsqueeze(2) * clean[near]).sum(1) + sigma * (unit.unsqueeze(2) * eps).sum(1)
        return state.reshape(noise.shape).to(noise.dtype)

    def plan(self, base: Plan, neighbours: int = 1, angle: float = 0.5) -> Started:
        """A plan that begins at time t, started from the drawn states; its noise chooses among them.

        Raises:
            ValueError: a plan for another process, or one that begins at another time.
        """
        if not base.fits(self.process):
            raise ValueError("the plan was made for another process")
        if not math.isclose(base.times[0], self.t, rel_tol=1e-9):
            raise ValueError(f"the plan begins at t = {base.times[0]:g}, the atoms are at t = {self.t:g}")

        def starter(noise: Tensor, seed: int, first: int, condition: dict[str, Tensor]) -> Tensor:
            return self.draw(noise, neighbours, angle)

        return started(base, starter, start="dpm-ot")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the data, heights and centres as one safetensors file, whole or not at all."""
        from safetensors.torch import save

        config = {"format": FORMAT, "process": self.process.config(), "t": self.t, "seed": self.seed}
        parts = {"data": self.data, "heights": self.heights, "centres": self.centres}
        tensors = {key: value.cpu().contiguous() for key, value in parts.items()}
        return write(Path(path), save(tensors, metadata={"config": json.dumps(config | {"fitted": self.fitted})}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OTStart:
        """Read a file of `save`; `ValueError` for anything else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                config: dict[str, Any] = json.loads((file.metadata() or {}).get("config", "{}"))
                if config.get("format") != FORMAT:
                    raise ValueError("it is of another format")
                process = process_from_config(config["process"])
                made = cls(process, file.get_tensor("data"), config["t"], config["seed"])
                made.heights, made.centres = file.get_tensor("heights"), file.get_tensor("centres")
                if made.heights.shape != (len(made.atoms),) or made.centres.shape != made.atoms.shape:
                    raise ValueError("its heights or centres do not fit its data")
                made.fitted = bool(config["fitted"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no start of this kind: {error}") from None
        return made
