"""Multistep consistency: segments and their ends, no gradient at the exact map, lcm as its special case; it learns."""

from __future__ import annotations

import pytest
import torch
from consistent import F64, PROCESSES, distance, drawn, exact, gaussian, slopes, small, train

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import made
from fewstep.distillation.latent import Latent
from fewstep.distillation.segments import Multistep, Segmented
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP


class ToEnds(Denoiser):
    """The exact map of a Gaussian from any time to the end of its segment: the student of several segments, exact."""

    def __init__(self, process, off=0.0):
        super().__init__()
        self.map, self.process, self.shape = gaussian(process, "map", off), process, (3,)
        self.ends = torch.tensor([process.t_zero], dtype=F64)

    @property
    def dtype(self):
        return F64

    def forward(self, x, t, **condition):
        later = self.ends[None] < t[:, None]
        to = torch.where(later, self.ends[None], -torch.inf).max(1).values
        return self.map(x, t, to=torch.where(to.isfinite(), to, t))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
@pytest.mark.parametrize("segments", [[5], [1]])
def test_at_the_exact_map_with_exact_steps_there_is_no_gradient(process, segments, monkeypatch):
    norms, flow = [], gaussian(process, "denoiser").flow
    monkeypatch.setattr(Multistep, "reached", lambda self, x, drawn: flow(x, drawn["t"], drawn["s"]).detach())
    for off in (0.0, 0.2):
        student = ToEnds(process, off)
        method = Multistep(exact(process, student=student), segments, "data", 20, 2, distance="squared")
        student.ends = method.times_of[method.edges(segments[0])][1:]
        norms.append(float(slopes(method, drawn(method, 64)).norm()))
    assert norms[0] < 1e-10 and norms[1] > 1e-3


def test_the_segments_by_hand():
    """Ten rows in four segments: edges 0, 2.5, 5, 7.5 and 10, rounded to even where halfway."""
    method = Multistep(small(EDM(), iterations=8), [4, 2, 1], levels=10, stride=3)
    assert method.edges(4).tolist() == [0, 2, 5, 8, 10] and method.edges(1).tolist() == [0, 10]
    rows = torch.arange(10)
    assert method.end_of(rows).tolist() == [2, 2, 5, 5, 5, 8, 8, 8, 10, 10]
    placed = method.placed(rows, torch.Generator())
    further = [2, 2, 5, 5, 5, 8, 8, 8, 10, 10]
    assert torch.equal(placed["s"], method.times_of[further])  # the third step never fits
    counts = []
    for step in range(8):
        method.setting.step = step
        counts.append(method.count)
    assert counts == [4, 4, 4, 2, 2, 2, 1, 1]
    assert method.end_of(rows).tolist() == [10] * 10 and method.kind == "jump" and method.times() is None


def test_with_one_segment_on_data_it_is_lcm_bit_for_bit():
    mine, lcm = Multistep(small(Flow()), [1], "data", stride=3), Latent(small(Flow()), stride=3)
    batches = [drawn(method) for method in (mine, lcm)]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in ("x0", "eps", "t", "s"))
    assert torch.equal(mine.loss(batches[0]), lcm.loss(batches[1]))
    assert torch.equal(slopes(mine, batches[0]), slopes(lcm, batches[1]))


def test_a_list_that_ends_above_one_makes_a_student_of_ddim_steps():
    method = Multistep(small(EDM()), [4, 2], levels=10)
    assert method.kind == "denoiser" and Multistep.kind == "jump"
    assert method.times() == (method.setting.start, float(method.times_of[5]))


def test_states_of_the_teacher_need_no_data_and_the_others_do():
    assert "z" in drawn(Multistep(small(EDM(), data=False)))
    assert "x0" in drawn(Multistep(small(EDM()), states="data"))
    with pytest.raises(ValueError, match="needs real samples"):
        Multistep(small(EDM(), data=False), states="data")


def test_tscd_goes_to_any_later_time_of_the_segment():
    method = Segmented(small(VP()), [2], levels=10)
    batch = drawn(method, 4000)
    rows, further, ends = (torch.searchsorted(-method.times_of, -batch[name]) for name in ("t", "s", "end"))
    assert bool((further > rows).all() and (further <= ends).all())
    assert set(ends.tolist()) == {5, 10} and bool((ends - rows <= 5).all())
    gaps = torch.bincount((further - rows)[rows == 0], minlength=6)
    assert gaps[0] == 0 and int(gaps[1:].min()) > 50  # 1 to 5 steps, evenly
    assert bool((batch["level"] > batch["end"]).all())


def test_tscd_weighs_the_adversary_by_the_segments():
    method = Segmented(small(VP(), iterations=2), [4, 1], levels=8, gan=0.5)
    losses = []
    for step, weight in ((0, 0.125), (1, 0.5)):
        method.setting.step = step
        batch = drawn(method)
        made_, goal = method.pair(batch)
        fooled = method.adversary.fooled(method.seen(made_, batch), batch["level"], batch)
        losses.append(method.loss(batch))
        torch.testing.assert_close(losses[-1], method.compared(made_, goal, batch) + weight * fooled)
    plain = Segmented(small(VP()), gan=0.0)
    assert list(plain.players) == ["student"] and "level" not in drawn(plain)


def test_tscd_critic_tells_the_targets_side_from_the_students():
    method = Segmented(small(VP()), [4], levels=8, adversarial="hinge")
    batch = drawn(method)
    made_, goal = method.pair(batch)
    seen = [method.seen(x.detach(), batch) for x in (goal, made_)]
    logits = [method.adversary.heads(x, batch["level"], {}) for x in seen]
    expected = torch.relu(1 - logits[0]) + torch.relu(1 + logits[1])
    torch.testing.assert_close(method.critic_loss(batch), expected)


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("mlcm", {"segments": [2, 4]}, r"segments must fall, from at most 50 to at least 1, got \[2, 4\]"),
        ("mlcm", {"segments": []}, "segments must fall"),
        ("mlcm", {"segments": [60, 1]}, "from at most 50"),
        ("mlcm", {"states": "both"}, "unknown kind of states 'both'"),
        ("tscd", {"gan": -1.0}, "gan must be at least 0, got -1.0"),
        ("tscd", {"adversarial": "hing"}, "unknown adversarial loss 'hing': did you mean 'hinge'"),
        ("tscd", {"features": ["mid"]}, "unknown block 'mid'"),
    ],
)
def test_what_they_refuse(name, options, said):
    with pytest.raises(ValueError, match=said):
        made("distiller", name, 1, **options)(small(EDM()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlcm", "tscd"])
def test_they_learn(name):
    method = made("distiller", name, 1, levels=20)(small(EDM(), iterations=600, lr=4e-3, ema=0.97))
    before = distance(method)
    train(method, 600, 128)
    assert distance(method) < before / 3
