"""`start=` and `final=` of `fs.restore`: a run that begins late, from the measurement, and one that ends at it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import methods
from fewstep.core.noise import Noise
from fewstep.operators.covariance import Covariance, Same
from fewstep.operators.noise import NoiseModel
from fewstep.operators.operator import LinearOperator, Operator
from fewstep.operators.solve import prox
from fewstep.restoration.calibrate import calibration_of
from fewstep.restoration.calibrated import agreed
from fewstep.restoration.measured import Problem, check_pair, in_coordinates

MEASURED = "measurement"
BEYOND = 2.0  # of the largest deviation that the measurement leaves open: noise of that level tells little besides
GUESSES = 256  # draws by which that deviation is found
DRAW = 3 << 28  # the first of the start's own draws
SPAN = 1e8  # of the numbers that a proximal step's weight is sought among


def begins(method: str) -> bool:
    """Whether a method goes on from any state: those that make x0 alone, and the chains whose card says so."""
    facts = {card.name: card.facts for card in methods("restorer", room="restoration")}
    return facts[method].get("form") == "moments" or bool(facts[method].get("begins"))


class Begin:
    """The first state of a run that begins at a level, `alpha x + sigma z`, x being a guess of the data given y.

    The guess is a draw of `N(x0_hat, C)` given the measurement, x0_hat the model's answer at pure noise and C its
    measured error there. On a Gaussian that is the posterior itself, so the run's law is right wherever it begins; in
    other laws what the guess gets wrong is what the noise of the level must hide.

    Args:
        level: `sigma / alpha` at the start, or "measurement": twice the largest deviation that y leaves open.

    Raises:
        ValueError: an operator that is not linear, noise that is not Gaussian, a method that begins elsewhere, another
            level.
    """

    def __init__(self, model: Denoiser, operator: Operator, law: NoiseModel, method: str, level: float | str):
        check_pair(model, operator)
        if not begins(method):
            named = ", ".join(card.name for card in methods("restorer", room="restoration") if begins(card.name))
            raise ValueError(f"{method!r} begins by a rule of its own: start is for {named}")
        if not isinstance(operator, LinearOperator):
            raise ValueError(f"start takes a linear operator, and {operator} is none")
        if not isinstance(getattr(law, "covariance", None), Covariance):
            raise ValueError(f"start takes Gaussian noise, not {type(law).__name__}")
        if level != MEASURED and not (isinstance(level, int | float) and level > 0):
            raise ValueError(f"start is {MEASURED!r} or a level sigma / alpha above 0, got {level!r}")
        self.model, self.process = model, model.process
        self.problem = Problem(model, in_coordinates(operator, model), law)
        self.c = calibration_of(model).covariance(torch.tensor(self.process.log_snr(self.process.t_max)))
        self.level = self._found() if level == MEASURED else float(level)
        if -math.log(self.level) > self.process.log_snr(self.process.t_min):
            low = math.exp(-self.process.log_snr(self.process.t_min))
            raise ValueError(f"start={self.level:g} leaves nothing to do: this process goes down to {low:.3g}")

    @property
    def time(self) -> float | None:
        """Of the level; None where that is the beginning of every run, or before it."""
        least = self.process.log_snr(self.process.t_max)
        if not -math.log(self.level) > least + 1e-9 * max(1.0, abs(least)):
            return None
        return float(self.process.time(-math.log(self.level)))

    def _found(self) -> float:
        source = Noise(0)
        z = source.normal(DRAW, (GUESSES, *(self.model.shape or ())), self.model.device, torch.float64)
        e = source.normal(DRAW + 1, (GUESSES, *self.problem.operator.out), z.device, z.dtype)
        left = agreed(self.problem.operator, self.c, self.problem.noise, z, e)
        return BEYOND * math.sqrt(float(left.square().mean(0).amax()))

    @torch.no_grad()
    def guesses(self, y: Tensor, seed: int, batch_size: int, condition: Mapping[str, Any]) -> Tensor:
        """Data `(B, *shape)`, one for each row of y, by one evaluation each; row i is number i of the seed."""
        named = self.model.check_condition(dict(condition), len(y), y.device)
        parts = []
        for begin in range(0, len(y), batch_size):
            rows = slice(begin, min(begin + batch_size, len(y)))
            parts.append(self._guessed(y[rows], Noise(seed, begin), {name: own[rows] for name, own in named.items()}))
        return torch.cat(parts)

    def _guessed(self, y: Tensor, source: Noise, named: dict[str, Tensor]) -> Tensor:
        shape, operator, noise = (len(y), *(self.model.shape or ())), self.problem.operator, self.problem.noise
        first, z = (source.normal(DRAW + number, shape, y.device, y.dtype) for number in (2, 3))
        e = source.normal(DRAW + 4, (len(y), *operator.out), y.device, y.dtype)
        t = torch.tensor(self.process.t_max, dtype=y.dtype, device=y.device)
        x0 = self.model(self.process.sigma(self.process.t_max) * first, t, **named).x0.to(y.dtype)
        # What y says of x0_hat, and a draw of what it leaves open, by one solve: y has the noise e less.
        x = x0 + agreed(operator, self.c, noise, z, e, y - operator(x0))
        return self.model.decode(x, **named)


def late(times: Callable[[float], list[float]], first: float) -> list[float]:
    """The last part of a grid `times(share)`, of the share whose first time is `first`."""
    low, high = 0.0, 1.0
    for _ in range(48):
        share = (low + high) / 2
        low, high = (share, high) if times(share)[0] < first else (low, share)
    return [first, *times(high)[1:]]


def finished(operator: Operator, law: Any, x: Tensor, y: Tensor, final: str | None) -> Tensor:
    """Results brought to their measurements, where that is asked for.

    Without noise `A x = y` after it, by the shortest way. With noise it is the proximal step that leaves a residual as
    large as the noise, and none where it is no larger already.
    """
    if final is None:
        return x
    if final != "project":
        raise ValueError(f"final must be 'project' or left out, got {final!r}")
    if not isinstance(operator, LinearOperator):
        raise ValueError(
            f"only what is measured linearly can be brought to its measurement, and {operator} is not linear"
        )
    if getattr(law, "none", False):
        return x + operator.pinv(y - operator(x))
    if not isinstance(getattr(law, "covariance", None), Same):
        raise ValueError("final='project' takes noise of one deviation: leave it out with others")
    held = operator.holds
    count = y[0].numel() if held is None else int(held.sum())
    most = float(law.covariance.variance) * count

    def off(z: Tensor) -> Tensor:
        return (y - operator(z)).double().flatten(1).square().sum(1)

    far = off(x) > most
    high = torch.full((len(x),), math.log(SPAN), dtype=torch.float64, device=x.device)
    low = -high
    for _ in range(40):  # of the weight that keeps x: the residual grows with it
        middle = (low + high) / 2
        more = off(prox(operator, x, y, middle.exp())) > most
        low, high = torch.where(more, low, middle), torch.where(more, middle, high)
    return torch.where(far.reshape(-1, *[1] * (x.ndim - 1)), prox(operator, x, y, low.exp()), x)
