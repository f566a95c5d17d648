"""`fs.restore(model, y, operator, noise=0.05)`: samples of p(x | y), by any method of the room."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole, checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live, Loop
from fewstep.core.methods import card
from fewstep.core.process import Process
from fewstep.core.sampler import Sampler
from fewstep.operators.noise import NoiseModel, as_noise
from fewstep.operators.operator import Operator
from fewstep.restoration.begin import Begin, finished, late
from fewstep.restoration.fits import check_fits, warn_of_units
from fewstep.restoration.measured import Measured, Problem, check_pair, check_states, in_coordinates
from fewstep.restoration.moments import Moments, named_step
from fewstep.sampling.build import plan as make_plan
from fewstep.sampling.sample import sample
from fewstep.timesteps.grid import make_times

DEFAULT, FILTER = "calibrated", "particles"
SOLVER = "ddpm"  # fresh noise at every step forgets the error of an approximate posterior
TIMES = "karras"
FAR = 1e3  # times the data's range: a state beyond it has left the model's world


@dataclass(frozen=True)
class Restored:
    """What `fs.restore(..., report=True)` gives; all tensors are data.

    Args:
        samples: `(B, n, *shape)`. mean, std: over the n of each, `(B, *shape)` (std 0 where n is 1).
        residual: root mean square of `y - A x` of each sample `(B, n)`, where an operator is given; noise: what the
            noise alone would leave.
        nfe: evaluations of each sample; passes: forwards of the network, a vector product counted as two more.
        seconds: of all of them.
        report: what else the method says of its run.
    """

    samples: Tensor
    mean: Tensor
    std: Tensor
    residual: Tensor | None
    noise: float | None
    method: str
    nfe: int
    passes: int
    seconds: float
    report: Mapping[str, Any]


@checked
def posterior(
    model: Denoiser,
    operator: Operator,
    noise: float | Tensor | NoiseModel = 0.0,
    method: str = "calibrated",
    weight: float = 1.0,
    **options: Any,
) -> Moments:
    """A model given a measurement as a denoiser with the condition `y`: any plan, search or executor runs it.

    Args:
        noise: standard deviation in the data's own units, or a law of noise.
        method: one of those that change x0 alone (`fewstep restore --list`). **options: its own.

    Raises:
        ValueError: as `fewstep.restoration.moments.Moments`; a method that is a chain of its own.
    """
    if card(method, "restorer", room="restoration")[0].facts.get("form") != "moments":
        raise ValueError(f"{method!r} is a chain of its own, not a denoiser: fs.restore runs it")
    made = Moments(model, operator, noise, method, options, weight)
    if getattr(made.step, "own", False):
        raise ValueError(f"{method!r} with these options is a chain of its own, not a denoiser: fs.restore runs it")
    return made


def chain(
    model: Denoiser,
    operator: Operator,
    noise: float | Tensor | NoiseModel,
    method: str,
    nfe: int,
    solver: Any = None,
    timesteps: str | Sequence[float] | None = None,
    options: Mapping[str, Any] | None = None,
    weight: float = 1.0,
    first: float | None = None,
) -> tuple[Denoiser, Sampler, Any]:
    """A method as a denoiser with the condition `y`, the sampler that runs it in `nfe` evaluations, and its options.

    first: a time at which it begins, other than the process's.

    Raises:
        ValueError: an unknown method or option, a solver for a chain of its own.
    """
    about = card(method, "restorer", room="restoration")[0]
    if about.facts.get("form") == "moments":
        denoiser: Any = Moments(model, operator, noise, method, options, weight)
        step: Any = denoiser.step
    else:
        if weight != 1.0:
            raise ValueError(f"{method!r} is a chain of its own: its strength is an option of it, not weight")
        check_states(model, method)
        denoiser, step = Measured(model, operator), named_step(method, options or {})
    if solver is None and getattr(step, "walk", None) is not None:
        grid = timesteps or TIMES
        if first is not None:
            steps = nfe // int(getattr(step, "each", 1))
            grid = late(lambda share: make_times(model.process, steps, grid, "zero", share), first)
        return denoiser, walking(model, operator, as_noise(noise), step, method, nfe, grid), step
    if solver is not None and (about.facts.get("form") != "moments" or getattr(step, "own", False)):
        raise ValueError(f"{method!r} is a chain of its own: leave the solver out")
    chosen = solver or about.facts.get("solver") or SOLVER
    listed = timesteps is not None and not isinstance(timesteps, str)
    made = make_plan(model.process, chosen, timesteps=timesteps or TIMES, nfe=None if listed else nfe)
    if first is not None:
        steps, rule = len(made.times) - 1, timesteps or TIMES
        grid = late(lambda share: make_times(model.process, steps, rule, "zero", share), first)
        made = make_plan(model.process, chosen, timesteps=grid)
    return denoiser, made, step


def walking(
    model: Denoiser,
    operator: Operator,
    law: NoiseModel,
    step: Any,
    method: str,
    nfe: int,
    timesteps: str | Sequence[float],
) -> Loop:
    """The sampler of a method that has a chain of its own, in at most `nfe` evaluations."""
    problem = Problem(model, in_coordinates(operator, model), law)
    check = getattr(step, "check", None)
    if check is not None:
        check(model, operator, law)
    each = int(getattr(step, "each", 1))
    if nfe < each:
        raise ValueError(f"{method!r} makes {each} evaluations a step: nfe must be at least that, got {nfe}")
    process = model.process
    times = make_times(process, nfe // each, timesteps, "zero") if isinstance(timesteps, str) else list(timesteps)

    def run(live: Live, process: Process, times: list[float]) -> Tensor:
        return step.walk(live, process, times, problem)  # type: ignore[no-any-return]

    start = process.alpha(times[0]), process.sigma(times[0])
    about = {"solver": method, "timesteps": timesteps if isinstance(timesteps, str) else "explicit"}
    most = each * (len(times) - 1)
    return Loop(run, tuple(times), start, process.config(), about, most=most, noisy=True)


@checked
def restore(
    model: Denoiser,
    y: Tensor,
    operator: Operator | None = None,
    noise: float | Tensor | NoiseModel = 0.0,
    *,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    n: int | None = None,
    particles: int | None = None,
    nfe: int = 20,
    solver: str | None = None,
    timesteps: str | Sequence[float] | None = None,
    weight: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
    start: float | str | None = None,
    final: str | None = None,
    report: bool = False,
    progress: bool = False,
    **condition: Any,
) -> Any:
    """Samples of `p(x | y)` for measurements `y = A(x) + noise`: `(B, *shape)`, or `(B, n, *shape)` where n is given.

    Args:
        y: measurements `(B, *measured)` as they are: nothing is degraded here.
        operator: A. A model that is conditioned on y already restores by itself, without one.
        noise: standard deviation in the data's own units, or a law of noise.
        method, options: one of the room's (`fewstep restore --list`) and its options; "calibrated" by default.
        particles: so many runs of each measurement, as a filter that is exact as they grow in number (method
            "particles"); the n samples are drawn from them, and depend on their number too.
        nfe: evaluations. A solver for methods that change x0 alone is "ddpm" by default.
        weight: of what the measurement says, in methods that change x0 alone.
        start: the level `sigma / alpha` at which the run begins, from a guess by the measurement, or "measurement":
            where the noise is twice what the measurement leaves open. The guess is one of the nfe evaluations.
        final: "project" brings the result to the measurement: exactly without noise, with it by the proximal step that
            leaves a residual as large as the noise.
        seed: sample j of measurement i is number `i n + j` of the seed.
        report: a `Restored` with means, spreads, residuals and costs.
        **condition: what the model is conditioned on, one for all or one a measurement.

    Raises:
        ValueError: an operator, measurement, noise or method that does not fit (the message says what would); a state
            that leaves a thousand times the data's range.
    """
    count, nfe = check_whole("n", 1 if n is None else n), check_whole("nfe", nfe)
    begun = time.perf_counter()
    if operator is None:
        samples = _by_itself(model, y, count, nfe, solver, timesteps, seed, batch_size, dtype, condition)
        if report:
            return _told(samples, None, None, "the model itself", nfe, nfe, begun, {})
        return samples if n is not None else samples[:, 0]
    name, own = method or DEFAULT, dict(options or {})
    if particles is not None:
        if method not in (None, DEFAULT, FILTER):
            raise ValueError(f"particles are runs of {DEFAULT!r}: leave method={method!r} out")
        name, own = FILTER, own | {"particles": particles}
    law, named = as_noise(noise), named_step(name, own)
    check_states(model, name)
    check_pair(model, operator)
    y = operator.received(operator.check_measurement(y))
    if not bool(torch.isfinite(y).all()):
        raise ValueError("y has values that are not finite")
    check_fits(name, named, model, operator, law, y)
    warn_of_units(model, operator, law, y)
    begin = None if start is None else _begin(model, operator, law, name, start, nfe, timesteps)
    first = None if begin is None else begin.time
    denoiser, sampler, step = chain(
        model, operator, noise, name, nfe - (first is not None), solver, timesteps, own, weight, first
    )
    together = card(name, "restorer", room="restoration")[0].facts.get("draws") == "particles"
    watch, runs = _Watch(model, name, step), step.particles if together else count
    if together:
        if count > runs:
            raise ValueError(f"{count} samples cannot be drawn from {runs} particles: ask for more of them")
        batch_size = max(1, batch_size // runs) * runs  # whole populations
    rows = y.to(model.device, dtype).repeat_interleave(runs, 0)
    told = {key: _each(value, len(y), runs) for key, value in condition.items()}
    guesses = None if begin is None or first is None else begin.guesses(rows, seed, batch_size, told)
    x = sample(
        denoiser,
        len(rows),
        plan=sampler,
        init=guesses,
        seed=seed,
        batch_size=batch_size,
        dtype=dtype,
        progress=progress,
        callback=watch,
        y=rows,
        **told,
    )
    x = x.reshape(len(y), runs, *x.shape[1:])[:, :count].flatten(0, 1)
    rows = y.to(x).repeat_interleave(count, 0)
    x = finished(operator, law, x, rows, final)
    samples = x.reshape(len(y), count, *x.shape[1:])
    if not report:
        return samples if n is not None else samples[:, 0]
    left = (rows - operator(x)).flatten(1)
    held = operator.holds
    size = left.shape[1] if held is None else int(held.sum())
    residual = (left.square().sum(1) / size).sqrt().reshape(len(y), count)
    std = getattr(law, "std", None)
    level = float(std) if isinstance(std, int | float) else None
    more = int(guesses is not None)
    passes = round(sampler.nfe * getattr(step, "passes", getattr(denoiser, "passes", 1))) + more
    said = {"effective sizes": torch.cat(step.sizes, 1)} if getattr(step, "sizes", None) else {}
    said |= step.reported() if hasattr(step, "reported") else {}
    return _told(samples, residual, level, name, sampler.nfe + more, passes, begun, said)


def _begin(
    model: Denoiser, operator: Operator, law: NoiseModel, method: str, start: float | str, nfe: int, timesteps: Any
) -> Begin:
    if timesteps is not None and not isinstance(timesteps, str):
        raise ValueError("timesteps by number say where the run begins: leave start out")
    if nfe < 2:
        raise ValueError(f"start takes an evaluation of the nfe for its guess: at least 2 in all, got {nfe}")
    return Begin(model, operator, law, method, start)


def _told(
    samples: Tensor,
    residual: Tensor | None,
    noise: float | None,
    method: str,
    nfe: int,
    passes: int,
    begun: float,
    said: Mapping[str, Any],
) -> Restored:
    mean, std = samples.mean(1), samples.std(1, correction=0)
    return Restored(samples, mean, std, residual, noise, method, nfe, passes, time.perf_counter() - begun, said)


class _Watch:
    """Stops a run whose state, or x0, leaves the model's world."""

    def __init__(self, model: Denoiser, method: str, step: Any):
        low, high = model.value_range or (-1.0, 1.0)
        self.most, self.process = FAR * max(high - low, 1e-6), model.process
        chain = card(method, "restorer", room="restoration")[0].facts.get("form") != "moments"
        ways = ["more evaluations", "start='measurement'"]
        ways += ["options={'pull': 'covariance'}"] if getattr(step, "pull", None) == "jacobian" else []
        ways += ["a smaller zeta"] if hasattr(step, "zeta") else [] if chain else ["a smaller weight"]
        ways += [] if method in (DEFAULT, FILTER) else ["method='calibrated'"]
        self.ways = f"{', '.join(ways[:-1])} or {ways[-1]}"

    def __call__(self, number: int, t: Any, x: Tensor, prediction: Any) -> None:
        time_ = torch.as_tensor(t, dtype=torch.float64).reshape(-1)
        level = torch.hypot(self.process.alpha(time_), self.process.sigma(time_)).amax()
        size = x.detach().abs().amax() / level.to(x)  # of a state whose data and noise are of ordinary size: some units
        if prediction.kind == "x0":
            size = torch.maximum(size, prediction.value.detach().abs().amax())
        reached = float(size)
        if not reached < self.most:
            where = f"{float(time_[0]):.4g}" if len(time_) == 1 else "several times"
            raise ValueError(
                f"the restoration left the data's range at evaluation {number} (t = {where}): it reached {reached:.3g}."
                f" What may tame it: {self.ways}"
            )


def _each(value: Any, measurements: int, count: int) -> Any:
    """A condition for each sample, of one for all or one a measurement."""
    if isinstance(value, Tensor) and value.ndim and len(value) == measurements:
        return value.repeat_interleave(count, 0)
    if isinstance(value, list | tuple) and len(value) == measurements:
        return [one for one in value for _ in range(count)]
    return value


def _by_itself(
    model: Denoiser,
    y: Tensor,
    count: int,
    nfe: int,
    solver: Any,
    timesteps: Any,
    seed: int,
    batch_size: int,
    dtype: torch.dtype,
    condition: Mapping[str, Any],
) -> Tensor:
    if "y" not in model.conditions:
        raise ValueError("this model knows nothing of measurements: say what y is, with operator=fs.operators...")
    rows = y.repeat_interleave(count, 0)
    told = {key: _each(value, len(y), count) for key, value in condition.items()}
    own: dict[str, Any] = {"solver": solver, "timesteps": timesteps} if solver or timesteps else {}
    x = sample(model, len(rows), nfe=nfe, seed=seed, batch_size=batch_size, dtype=dtype, y=rows, **own, **told)
    return x.reshape(len(y), count, *x.shape[1:])
