"""Numbers that a plan tells the network: traced, printed, saved, in every executor, learned. Methods: tell."""

from __future__ import annotations

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.conditions.number import Number
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.record import record
from fewstep.core.sampler import begin_run
from fewstep.core.unrolled import unrolled
from fewstep.guidance.cfg import cfg
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.checkpointed import checkpointed
from fewstep.sampling.compiled import Compiled, step
from fewstep.sampling.mixed import run_mixed
from fewstep.sampling.parallel import run_parallel
from fewstep.sampling.tell import tell
from fewstep.searching.learn import Learner

F64 = torch.float64


class Told(Denoiser):
    """x0 depends on a label and on the number `width`, smoothly."""

    def __init__(self):
        super().__init__()
        self.process, self.shape = VP(), (2,)
        self.conditions = {"label": Label(3), "width": Number(0.0, 10.0, 1.0)}
        self.heard = []

    def forward(self, x, t, *, label, width):
        self.heard.append(width.tolist())
        value = torch.tanh(x + 0.3 * label[:, None]) * width[:, None].to(x.dtype)
        return Prediction(value, "x0", x, t, self.process)


NOISE = Noise(1).normal(0, (3, 2), "cpu", F64)
WIDTHS = [0.5, None, 2.0, 1.5]


def test_the_network_hears_them_or_the_runs_own():
    model = Told()
    made = plan(model.process, "dpmpp-2m", 4)
    told = tell(made, width=WIDTHS)
    told(model, NOISE, width=3.0, dtype=F64)
    assert model.heard == [[0.5] * 3, [3.0] * 3, [2.0] * 3, [1.5] * 3]
    model.heard.clear()
    constant, given = tell(made, width=3)(model, NOISE, dtype=F64), made(model, NOISE, width=3.0, dtype=F64)
    assert torch.equal(constant, given)
    assert "width=0.5" in str(told) and "width" not in str(made)
    assert tell(made) == made
    assert tell(told, other=[None] * 4) == told


def test_they_are_saved_and_old_files_stay_as_they_are(tmp_path):
    made = plan(VP(), "ddim", 4)
    assert '"fewstep-plan-1"' in made.to_json()
    told = tell(made, width=WIDTHS, guidance=2.0)
    told.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == told
    assert told.evaluations[1].given == (("guidance", 2.0),)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddpm", "heun"])
def test_every_executor_tells_them(solver):
    model = Told()
    made = plan(model.process, solver, 3)
    told = tell(made, width=[0.5 + 0.2 * k if k != 1 else None for k in range(made.nfe)])
    wanted = told(model, NOISE, seed=2, label=1, dtype=F64)
    close = {"rtol": 0, "atol": 1e-12}
    found = run_parallel(told, model, NOISE, 4, 0.0, seed=2, dtype=F64, label=1).samples
    torch.testing.assert_close(found, wanted, **close)
    (found,) = run_mixed([(told, NOISE, {"label": 1})], model, dtype=F64) if solver != "ddpm" else (wanted,)
    torch.testing.assert_close(found, wanted, **close)
    torch.testing.assert_close(checkpointed(told, model, NOISE, seed=2, label=1), wanted, **close)
    torch.testing.assert_close(Compiled(told, model, step)(NOISE, seed=2, dtype=F64, label=1), wanted, **close)
    table = told.table
    x, named = begin_run(told, model, NOISE, None, F64, {"label": 1})
    numbers = table.numbers("x0", x.device, F64)
    draws = [draw for stage in table.stages for draw, _ in stage.draws]
    noises = [Noise(2).normal(draw, (3, 2), "cpu", F64) for draw in draws]
    found = unrolled(table.structure, model, x, *numbers, noises, named, table.given(x.device, F64))
    torch.testing.assert_close(found, wanted, **close)


def test_a_solver_may_tell_them_itself():
    def solver(trace, process, times):
        x = trace.start()
        for t in times[:-1]:
            x = trace.evaluate(x, t, width=2 * t).x0
        return x

    made = record(solver, VP(), [1.0, 0.5, 0.1, 0.0], {}, {"solver": "own"})
    assert [op.given for op in made.evaluations] == [(("width", 2.0),), (("width", 1.0),), (("width", 0.2),)]


def test_guidance_in_an_interval_is_a_column():
    model = cfg(Told(), 4.0)
    made = plan(model.process, "ddim", 5, guidance=[1, 1, 3, 3, 1])
    result = made.run(model, NOISE, label=2, dtype=F64)
    assert result.report["rows"] == 7
    by_hand, scales = NOISE * made.start[1], iter([1, 1, 3, 3, 1])
    for op, s in zip(made.evaluations, [*[e.scales for e in made.evaluations[1:]], None], strict=True):
        x0 = cfg(Told(), next(scales))(by_hand, torch.tensor(op.t, dtype=F64), **_named(model)).x0
        eps = (by_hand - op.scales[0] * x0) / op.scales[1]
        by_hand = x0 if s is None else s[0] * x0 + s[1] * eps
    torch.testing.assert_close(result.samples, by_hand, rtol=1e-9, atol=1e-9)


def _named(model):
    return model.check_condition({"label": 2}, 3, NOISE.device)


def test_a_learner_keeps_them_or_fits_them():
    told = tell(plan(VP(), "dpmpp-2m", 4), width=[0.5, 1.0, 2.0, 1.5])
    kept, learned = Learner(VP(), told), Learner(VP(), told, numbers=True)
    assert len(learned.initial) == len(kept.initial) + 4
    assert [op.given for op in kept.plan(kept.initial).evaluations] == [op.given for op in told.evaluations]
    theta = learned.initial.copy()
    theta[-4:] += 0.25
    assert [dict(op.given)["width"] for op in learned.plan(theta).evaluations] == [0.75, 1.25, 2.25, 1.75]


def test_bad_input():
    made = plan(VP(), "ddim", 3)
    with pytest.raises(ValueError, match="3 evaluations, got 2 numbers for 'guidance'"):
        tell(made, guidance=[1, 2])
    with pytest.raises(ValueError, match="must be finite"):
        tell(made, guidance=[1, float("nan"), 2])
    with pytest.raises(ValueError, match="only a plan has"):
        plan(VP(), "rk-adaptive", guidance=2.0)
    with pytest.raises(ValueError, match="at least 0"):
        made(cfg(Told(), 2.0), NOISE, guidance=-1.0)
