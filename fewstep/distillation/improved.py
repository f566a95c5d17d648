"""Consistency training, improved: a curriculum of levels (iCT), or stretches that shrink from the whole way (ECT)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.distillation.consistency import Neighbours, check_weight, inverse_gap
from fewstep.distillation.distances import distance as named_distance
from fewstep.distillation.levels import at_ratio, grid, log_normal, ratio
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.pairs import Pairs

METHODS = (
    Method(
        "ict",
        paper="Improved Techniques for Training Consistency Models (Song and Dhariwal, 2024)",
        arxiv="2310.14189",
        claim="five changes make consistency training as good as distillation, without a teacher's steps",
        use="Improved",
        facts={"student": "jump", "data": True, "pairing": False, "players": ("student",), "steps": "any"},
    ),
    Method(
        "ect",
        paper="Consistency Models Made Easy (Geng et al., 2025)",
        arxiv="2406.14548",
        claim="from a diffusion model's weights, by stretches that shrink: a fraction of iCT's cost",
        use="Easy",
        facts={"student": "jump", "data": True, "pairing": False, "players": ("student",), "steps": "any"},
    ),
)

MEAN, DEVIATION = -1.1, 2.0  # of log sigma, for data of standard deviation 0.5
CURRICULA = {"doubling": (10, 1280), "root": (2, 150)}  # the first number of stretches, and the last
LEVELS = ("log-normal", "even")
MU = 0.9  # decay of the average at the first number of levels, in consistency training as first published


def doubling(k: int, iterations: int, first: int = 10, last: int = 1280) -> int:
    """iCT's N(k), `min(s0 2^floor(k / K'), s1) + 1` with `K' = floor(K / (log2 floor(s1 / s0) + 1))` (section 3.4)."""
    length = max(1, math.floor(iterations / (math.log2(last // first) + 1)))
    return int(min(first * 2 ** min(k // length, 60), last)) + 1


def root(k: int, iterations: int, first: int = 2, last: int = 150) -> int:
    """The N(k) of consistency training as first published, `ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1`."""
    return math.ceil(math.sqrt(k / iterations * ((last + 1) ** 2 - first**2) + first**2) - 1) + 1


def level_weights(levels: Tensor, mean: float = MEAN, deviation: float = DEVIATION) -> Tensor:
    """The share of each stretch between falling levels (N,) in a log-normal law cut to them, (N - 1,) float64:
    `erf((log sigma_i - m) / (sqrt(2) s)) - erf((log sigma_{i+1} - m) / (sqrt(2) s))`, i + 1 the lower (iCT, eq. 10)."""
    found = torch.erf((levels.double().log() - mean) / (math.sqrt(2) * deviation))
    shares = found[:-1] - found[1:]
    return shares / shares.sum()


class Improved(Pairs):
    """iCT: consistency training with five changes, each of which can be taken back to what was first published.

    1. `average=False`: the target's side is the student itself, and not an average of decay
       `mu(k) = exp(s0 log mu0 / N(k))`, mu0 = 0.9.
    2. `distance="pseudo-huber"` in place of "squared".
    3. `curriculum="doubling"`: N doubles from 10 to 1280 in equal parts of the run; "root" rises from 2 to 150.
    4. `levels="log-normal"` in place of "even".
    5. `weight="inverse"`, `1 / (sigma_t - sigma_s)`, in place of "one".

    Levels are noise-to-signal ratios, and the log-normal law's mean goes with the data's standard deviation, which is
    0.5 in the paper. N counts the levels above the clean end, and the last stretch ends there: the boundary needs no
    scalings of the student's. Of the paper's further advice, dropout and the embedding are the network's.

    Raises:
        ValueError: an unknown name, no data.
    """

    def __init__(
        self, setting: Setting, average: bool = False, distance: str = "pseudo-huber", curriculum: str = "doubling",
        levels: str = "log-normal", weight: str = "inverse",
    ) -> None:  # fmt: skip
        if curriculum not in CURRICULA:
            raise suggest("curriculum", curriculum, CURRICULA)
        if levels not in LEVELS:
            raise suggest("law of levels", levels, LEVELS)
        self.averaged, self.curriculum = average, curriculum
        self.normal, self.weighted = levels == "log-normal", check_weight(weight) == "inverse"
        self.mean = MEAN + math.log(2 * setting.data_std)
        self._made: tuple[int, Tensor, Tensor | None] | None = None
        super().__init__(setting, named_distance(distance), training=True)

    def count(self) -> int:
        """N(k), the number of levels in this iteration."""
        rule = {"doubling": doubling, "root": root}[self.curriculum]
        return rule(self.setting.step, self.setting.iterations, *CURRICULA[self.curriculum])

    def decay(self) -> float:
        return math.exp(CURRICULA[self.curriculum][0] * math.log(MU) / self.count()) if self.averaged else 0.0

    def levels(self, batch: int, generator: torch.Generator) -> Batch:
        n, process = self.count(), self.setting.process
        if self._made is None or self._made[0] != n:
            times = grid(process, n, self.setting.start)
            weights = level_weights(ratio(process, times), self.mean) if self.normal else None
            self._made = n, times, weights
        return Neighbours(self._made[1])(batch, generator, self._made[2])

    def weight(self, drawn: Batch) -> Tensor | None:
        return inverse_gap(self.setting, drawn["t"], drawn["s"]) if self.weighted else None


def nearer(process: Process, t: Tensor, start: float, k: float, every: float, q: float, unit: float) -> Tensor:
    """ECT's other time, `s / t = 1 - n(t) / q^ceil(k / d)` with `n(t) = 1 + 8 sigmoid(-t)`, never below 0 (Geng et
    al., eq. 13), in noise-to-signal ratios of a unit. k: the iteration. every: d, iterations to the next power of q."""
    level = ratio(process, t)
    share = 1 - (1 + 8 * torch.sigmoid(-level / unit)) / q ** math.ceil(k / every)
    return at_ratio(process, level * share.clamp(min=0.0), start)


class Easy(Pairs):
    """ECT: consistency training from a diffusion model's weights, in stretches that begin as the whole way to the data
    (which is denoising) and shrink to `1 - n(t) / q^doublings` of the level.

    Levels are noise-to-signal ratios, log-normal as iCT's and cut to the start, in the unit 2 data_std: the papers'
    data have 0.5. Weight `1 / (sigma_t - sigma_s)`, and the pseudo-Huber distance whose slope is the paper's
    `1 / sqrt(|e|^2 + c^2)`.

    Args:
        q: the factor between stages. doublings: stages of the run, all of one length.

    Raises:
        ValueError: q not above 1, no stage, an unknown distance, no data.
    """

    def __init__(self, setting: Setting, q: float = 2.0, doublings: int = 8, distance: str = "pseudo-huber") -> None:
        if not q > 1 or doublings < 1:
            raise ValueError(f"q must be above 1 and doublings at least 1, got {q} and {doublings}")
        self.q, self.doublings, self.unit = q, doublings, 2 * setting.data_std
        super().__init__(setting, named_distance(distance), training=True)

    def levels(self, batch: int, generator: torch.Generator) -> Batch:
        process, start = self.setting.process, self.setting.start
        normal = torch.randn(batch, generator=generator, dtype=torch.float64)
        t = log_normal(process, normal, MEAN + math.log(self.unit), DEVIATION, start)
        every = self.setting.iterations / self.doublings
        return {"t": t, "s": nearer(process, t, start, self.setting.step, every, self.q, self.unit)}

    def weight(self, drawn: Batch) -> Tensor:
        return inverse_gap(self.setting, drawn["t"], drawn["s"])
