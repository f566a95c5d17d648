"""The loop of particles: the plan bit for bit where nothing steers, samples that never meet, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import ask
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.power import Power
from fewstep.guidance.steer import Steered
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.mixed import run_mixed

F64 = torch.float64
MEANS = torch.tensor([[-1.0, 0.3], [0.8, 0.5], [0.1, -1.0]])


def mixture(process: Any = None) -> GaussianMixture:
    return GaussianMixture(torch.ones(3), MEANS, 0.3**2, process or VP())


class Labelled(Denoiser):
    """Three Gaussians, each under its label, and their mixture under none; it notes how many rows it saw."""

    def __init__(self, process: Any = None) -> None:
        super().__init__()
        self.process, self.shape, self.conditions = process or VP(), (2,), {"label": Label(3)}
        parts = [GaussianMixture(torch.ones(1), mean[None], 0.3**2, self.process) for mean in MEANS]
        self.models = [*parts, mixture(self.process)]
        self.seen = 0

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        self.seen += len(x)
        answers = torch.stack([model(x, t).value for model in self.models])
        return Prediction(answers[condition["label"], torch.arange(len(x))], "x0", x, t, self.process)


class Momentum(Wrapper):
    """Its answer is the mean of all x0 that the row has seen in its run, and it keeps the row's first state."""

    carries = True

    def forward(self, x: Tensor, t: Tensor, *, memory: Any = None, **condition: Any) -> Prediction:
        answer = ask(self.model, x, t, memory, condition)
        if memory is None:
            return answer
        branch = memory.branch("inner")
        before, count = branch.get("sum"), memory.number + 1
        total = answer.x0 if before is None else before + answer.x0
        branch.keep("sum", total)
        return Prediction(total / count, "x0", x, t, self.process)


def reward(x: Tensor, **condition: Tensor) -> Tensor:
    return 3 * x[:, 0] - x[:, 1] ** 2


def noise(n: int, seed: int = 3, first: int = 0) -> Tensor:
    return Noise(seed, first).normal(0, (n, 2), dtype=F64)


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp-2m-sde", "dpmpp-3m-sde", "dpmpp-2s-ancestral", "sa-solver"])
@pytest.mark.parametrize("method", ["fk", "tds"])
def test_one_particle_without_a_reward_is_the_plan_bit_for_bit(solver, method):
    for process in (VP(), EDM(), Flow()):
        plan, model = fs.plan(process, solver, steps=5), mixture(process)
        ours = fs.steer(plan, method, particles=1).run(model, noise(4), seed=3, dtype=F64)
        theirs = plan.run(model, noise(4), seed=3, dtype=F64)
        assert torch.equal(ours.samples, theirs.samples) and ours.nfe == theirs.nfe == plan.nfe
        assert ours.report["rows"] == plan.nfe and torch.equal(ours.report["log_normaliser"], torch.zeros(4, dtype=F64))
    # Weights do not move a particle that is alone.
    alone = fs.steer(plan, "fk", particles=1, reward=reward)(model, noise(4), seed=3, dtype=F64)
    assert torch.equal(alone, theirs.samples)


@pytest.mark.parametrize("method", ["fk", "tds"])
def test_a_sample_depends_on_its_own_stream_alone(method):
    plan, model = fs.plan(VP(), "dpmpp-2m-sde", steps=6), Labelled()
    steered = fs.steer(plan, method, reward=reward, particles=5, keep=True)
    label = torch.tensor([0, 1, 2, 3])
    whole = steered.run(model, noise(4), seed=3, dtype=F64, label=label)
    for first in (0, 2):
        own = slice(first, first + 2)
        part = steered.run(model, noise(2, first=first), seed=3, first=first, dtype=F64, label=label[own])
        torch.testing.assert_close(part.samples, whole.samples[own], rtol=1e-9, atol=1e-9)
        for name in ("particles", "log_weights", "log_normaliser", "resampled"):
            torch.testing.assert_close(part.report[name], whole.report[name][own], rtol=1e-9, atol=1e-9)
    assert whole.report["ess"].shape == (6, 4) and whole.report["rows"] == 30
    assert int(whole.report["resampled"].max()) >= 1
    drawn = fs.sample(model, 4, plan=steered, seed=3, dtype=F64, label=label, batch_size=3)
    torch.testing.assert_close(drawn, whole.samples, rtol=1e-9, atol=1e-9)


def test_particles_start_and_move_by_draws_of_their_own():
    plan, model = fs.plan(VP(), "ddpm", steps=3), mixture()
    x = fs.steer(plan, "fk", particles=3, keep=True).run(model, noise(2), seed=3, dtype=F64).report["particles"]

    class Third:
        def normal(self, draw: int, shape: Any, device: Any = "cpu", dtype: Any = F64) -> Tensor:
            return Noise(3).normal(3 * draw + 2, shape, device, dtype)

    alone = plan(model, Noise(3).normal(2, (2, 2), dtype=F64), source=Third(), dtype=F64)
    torch.testing.assert_close(x[:, 2], alone)
    first = torch.full((2, 2), 0.4, dtype=F64)
    late = fs.plan(VP(), "ddpm", steps=4, strength=0.5)
    x = fs.steer(late, "fk", particles=3, keep=True).run(model, noise(2), seed=3, init=first, dtype=F64)
    alone = late(model, Noise(3).normal(2, (2, 2), dtype=F64), init=first, source=Third(), dtype=F64)
    torch.testing.assert_close(x.report["particles"][:, 2], alone)


@pytest.mark.parametrize("method", ["fk", "tds"])
def test_guided_models_and_what_rows_remember_follow_the_particles(method):
    plan, model = fs.plan(VP(), "dpmpp-2m-sde", steps=6), Labelled()
    guided = fs.guide(model, "cfg", scale=2.0)
    steered = fs.steer(plan, method, reward=reward, strength=2.0, particles=4)
    given = {"label": [0, 1], "guidance": [1.5, 3.0]}
    run = steered.run(guided, noise(2), seed=3, dtype=F64, **given)
    assert run.report["rows"] == 6 * 4 * 2 and model.seen == 2 * run.report["rows"]
    one = steered.run(guided, noise(1, first=1), seed=3, first=1, dtype=F64, label=1, guidance=3.0)
    torch.testing.assert_close(one.samples, run.samples[1:])

    # A row's sum over its run, beside that of its ancestors, which are told by the states they had.
    seen: list[tuple[Tensor, Tensor]] = []
    remembering = Momentum(mixture())
    strong = fs.steer(plan, method, reward=reward, strength=4.0, particles=6, threshold=0.9)
    result = strong.run(remembering, noise(3), seed=3, dtype=F64, callback=lambda i, t, x, p: seen.append(
        (x.clone(), p.value.clone() * i)))  # fmt: skip
    assert int(result.report["resampled"].sum()) >= 2
    sums = [total for _, total in seen]
    for i in range(1, len(seen)):
        x, total = seen[i]
        exact = mixture()(x, torch.tensor(plan.evaluations[i].t, dtype=F64)).x0
        # total - exact is some row's sum of the evaluation before, of the same sample.
        distance = (total - exact).view(3, 6, 1, 2) - sums[i - 1].view(3, 1, 6, 2)
        assert float(distance.abs().amax(-1).amin(-1).max()) < 1e-9


def test_resampling_keeps_the_history_of_a_multistep_solver():
    """A model that is linear in the state: each survivor's path is one that a plan alone would go."""
    plan, model = fs.plan(VP(), "dpmpp-3m-sde", steps=5), mixture()
    states: list[Tensor] = []
    steered = fs.steer(plan, "fk", reward=reward, strength=5.0, particles=3, threshold=1.0)
    run = steered.run(model, noise(1), seed=3, dtype=F64, callback=lambda i, t, x, p: states.append(x.clone()))
    index = run.report["resampled"]
    assert int(index[0]) >= 3
    # Row j of the last state takes the draws of row j from there on; its ancestors are found by trying all of them.
    import itertools

    found = 0
    for path in itertools.product(range(3), repeat=4):

        class Path:
            def normal(self, draw: int, shape: Any, device: Any = "cpu", dtype: Any = F64, path: Any = path) -> Tensor:
                return Noise(3).normal(3 * draw + path[draw], shape, device, dtype) if draw < 4 else torch.zeros(shape)

        start = noise(1) if path[0] == 0 else Noise(3).normal(path[0], (1, 2), dtype=F64)
        went = plan.run(model, start, source=Path(), dtype=F64, trajectory=True).trajectory
        found += int(float((went[3] - states[3][path[3]]).abs().max()) < 1e-9)
    assert found == 3  # each of the three rows has one such path


def test_the_result_is_drawn_by_weight_or_the_best():
    plan, model = fs.plan(VP(), "ddpm", steps=4), mixture()
    options = {"reward": reward, "particles": 4, "keep": True, "potential": "importance"}
    drawn = fs.steer(plan, "fk", **options).run(model, noise(6), seed=3, dtype=F64)
    best = fs.steer(plan, "fk", choose="best", **options).run(model, noise(6), seed=3, dtype=F64)
    every = drawn.report["particles"]
    assert every.shape == (6, 4, 2) and torch.equal(every, best.report["particles"])
    scores = reward(every.flatten(0, 1)).view(6, 4)
    torch.testing.assert_close(drawn.report["log_weights"], scores)
    assert torch.equal(best.samples, every[torch.arange(6), scores.argmax(1)])
    assert bool((every == drawn.samples[:, None]).all(-1).any(1).all())
    torch.testing.assert_close(drawn.report["log_normaliser"], scores.exp().mean(1).log())
    assert "particles" not in fs.steer(plan, "fk", particles=2).run(model, noise(6), seed=3, dtype=F64).report


def test_what_is_watched_and_printed():
    plan, model = fs.plan(VP(), "ddpm", steps=4), mixture()
    steered = fs.steer(plan, "fk", particles=3)
    run = steered.run(model, noise(2), dtype=F64, trajectory=True)
    assert [len(x) for x in run.trajectory] == [6, 6, 6, 6, 2]
    assert (steered.nfe, steered.stochastic, steered.moments) == (4, True, plan.moments)
    assert str(steered).startswith("Steered: ddpm, fk, particles 3\nPlan: 4 evaluations")
    assert isinstance(steered, Steered) and steered.times == plan.times and steered.fits(model.process)


def test_bad_input():
    plan, model = fs.plan(VP(), "ddpm", steps=3), mixture()
    loop = fs.plan(VP(), "pc", steps=3)
    for call, message in (
        (lambda: fs.steer(plan, "fkk"), "unknown steering 'fkk': did you mean 'fk' or 'fkc'"),
        (lambda: fs.steer(plan, "fk", rewad=reward), "unknown option of the steering 'fk' 'rewad': did you mean 'rew"),
        (lambda: fs.steer(fs.plan(VP(), "ddim", 3)), "steering 'ddim' needs noise: a plan with eta or an SDE solver"),
        (lambda: fs.steer(loop), "steer takes a plan, whose program it can drive; 'pc' is none"),
        (lambda: fs.steer(fs.steer(plan)), "steer takes a plan, whose program it can drive; 'ddpm, fk' is none"),
        (lambda: fs.steer(plan, particles=0), "particles must be at least 1, got 0"),
        (lambda: fs.steer(plan, particles=1.5), "particles must be a whole number, got 1.5"),
        (lambda: fs.steer(plan, threshold=1.5), "threshold is a share of the particles, from 0 to 1, got 1.5"),
        (lambda: fs.steer(plan, choose="bset"), "unknown choice of the result 'bset': did you mean 'best'"),
        (lambda: fs.steer(plan, choose="best"), "takes the particle of the highest reward, and 'fk' has none here"),
        (lambda: fs.steer(plan, "fk").table, "'ddpm, fk' has no table"),
        (lambda: run_mixed([(fs.steer(plan), noise(1))], model), "run it alone, by plan.run or fs.sample"),
        (lambda: fs.steer(plan).run(model, torch.zeros(2, 3)), r"noise of shape \(2, 3\) does not fit the model"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_network_that_answers_nonsense_is_named():
    class Broken(Denoiser):
        def __init__(self, what: str) -> None:
            super().__init__()
            self.process, self.shape, self.what = VP(), (2,), what

        def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
            value = x[:, :1] if self.what == "shape" else torch.where(t < 0.5, torch.nan, 0) * x
            return Prediction(value, "x0", x, t, self.process)

    plan = fs.plan(VP(), "ddpm", steps=4)
    with pytest.raises(ValueError, match="returned values that are not finite at evaluation"):
        fs.steer(plan, "fk", reward=reward).run(Broken("values"), noise(2), dtype=F64)
    with pytest.raises(ValueError, match=r"returned shape \(4, 1\) for an input of shape \(4, 2\) at evaluation 1"):
        fs.steer(plan, "fk", particles=2).run(Broken("shape"), noise(2), dtype=F64)


@pytest.mark.parametrize("method", ["fk", "tds", "fkc"])
def test_nothing_is_read_from_the_device_between_the_evaluations(method):
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += op.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal")
            return op(*args, **(kwargs or {}))

    model = Power(mixture(), 1.2) if method == "fkc" else mixture()
    options = {} if method == "fkc" else {"reward": reward}
    counts = []
    for steps in (16, 8, 16):  # the first run fills what processes and plans remember
        steered = fs.steer(fs.plan(VP(), "ddpm", steps=steps), method, particles=3, **options)
        with Reads() as reads:
            steered(model, noise(2), seed=3, dtype=F64)
        counts.append(reads.count)
    assert counts[1] == counts[2] <= 4
