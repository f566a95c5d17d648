"""Sub-path linear approximation: lcm as its special case, its points by hand, the further input; it learns."""

from __future__ import annotations

import pytest
import torch
from consistent import F64, PROCESSES, distance, drawn, exact, gaussian, plane, slopes, small, train

from fewstep.core.methods import made
from fewstep.distillation.latent import Latent
from fewstep.distillation.pairs import noisy
from fewstep.distillation.sub_path import SubPath
from fewstep.distillation.teacher import step
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_at_a_share_of_one_without_the_input_it_is_lcm_bit_for_bit(process):
    one, other = SubPath(small(process), stride=5, share=1.0), Latent(small(process), stride=5, substeps=2)
    batches = [drawn(method) for method in (one, other)]
    assert batches[0].keys() == batches[1].keys()
    assert torch.equal(one.loss(batches[0]), other.loss(batches[1]))
    assert torch.equal(slopes(one, batches[0]), slopes(other, batches[1]))
    for method in (one, other):
        train(method, 3)
    for a, b in zip(one.student.parameters(), other.student.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_points_by_hand():
    process = VP()
    method = SubPath(small(process), stride=10)
    t, s = (process.time(torch.full((2,), level, dtype=F64)) for level in (-0.5, 1.0))
    x, y = torch.randn(2, 2), torch.randn(2, 2)
    found = method.between(x, y, {"t": t, "s": s, "share": torch.tensor([0.25, 1.0], dtype=F64)})
    ratio = float(process.alpha(t[0]) / process.alpha(s[0]))
    torch.testing.assert_close(found[0], 0.75 * ratio * y[0] + 0.25 * x[0])
    assert torch.equal(found[1], x[1])


def test_the_loss_by_hand_and_the_share_reaches_the_network():
    process = Flow()
    method = SubPath(small(process), stride=10)
    assert method.student.network.embedding.extras == {"share": 1}
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch = drawn(method)
    assert float(batch["share"].min()) >= 0 and float(batch["share"].max()) <= 1
    x = noisy(method.setting, batch)
    with torch.no_grad():
        y = step(plane(process), x, batch["t"], batch["s"], {}, substeps=2)
        goal = method.target(y, batch["s"], batch)
        torch.testing.assert_close(goal[batch["s"] > 0], method.student(y, batch["s"]).x0[batch["s"] > 0])
        point = method.between(x, y, batch)
        made_ = method.student(point, batch["t"], share=batch["share"]).x0
        assert not torch.allclose(made_, method.student(point, batch["t"]).x0)
    torch.testing.assert_close(method.loss(batch).detach(), method.distance(made_, goal))
    one = torch.ones(8)
    torch.testing.assert_close(method.student(x, batch["t"], share=one).x0, method.student(x, batch["t"]).x0)


def test_at_the_exact_map_on_the_path_itself_there_is_no_gradient(monkeypatch):
    process = EDM()
    norms, flow = [], gaussian(process, "denoiser").flow
    monkeypatch.setattr(SubPath, "reached", lambda self, x, drawn: flow(x, drawn["t"], drawn["s"]).detach())
    for off in (0.0, 0.2):
        method = SubPath(exact(process, off=off), stride=10, distance="squared", share=1.0)
        norms.append(float(slopes(method, drawn(method, 64)).norm()))
    assert norms[0] < 1e-10 and norms[1] > 1e-3


@pytest.mark.parametrize(
    "options, said",
    [({"share": 1.5}, "share must be 0 to 1, got 1.5"), ({"stride": 99}, "stride must be 1 to 50")],
)
def test_what_it_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        made("distiller", "splam", 1, **options)(small(EDM()))


@pytest.mark.slow
def test_it_learns():
    method = SubPath(small(EDM(), iterations=600, lr=4e-3, ema=0.97), levels=20, stride=3)
    before = distance(method)
    train(method, 600, 128)
    assert distance(method) < before / 3
