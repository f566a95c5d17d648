"""What consistency methods share: the boundary, averaged targets, dropped units, walked states; and each resumed."""

from __future__ import annotations

import pytest
import torch
from consistent import F64, PROCESSES, drawn, exact, gaussian, perceptron, plane, points, slopes, small, train
from torch import nn

from fewstep.core.methods import made
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.consistency import Consistency
from fewstep.distillation.method import Setting
from fewstep.distillation.pairs import drawn_from, noisy
from fewstep.networks.dit import DiT
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.training.players import restore, state

# Every method of this family, with options under which all of their state is in use within 20 iterations.
METHODS = {
    "consistency": {},
    "ict": {"average": True},
    "ect": {},
    "scm": {},
    "tcm": {"stage": 0.3},
    "lcm": {"stride": 3},
    "mlcm": {},
    "tscd": {},
    "scott": {},
    "splam": {"stride": 3},
}


# In the default suite those that keep more than their players; the contract resumes all.
RESUMED = [pytest.param(name, marks=[] if name in ("ict", "tcm") else pytest.mark.slow) for name in METHODS]


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.slow  # the contract has one of each method
def test_resumed_as_if_it_had_never_stopped(name):
    def new():
        return made("distiller", name, 1, **METHODS[name])(small(EDM(), classes=3))

    whole, first, second = new(), new(), new()
    train(whole, 20)
    train(first, 10)
    second.setting.step = 10
    second.restore({name: value.clone() for name, value in first.state().items()})
    restore(second.players, state(first.players))
    train(second, 20)
    for key, value in state(whole.players).items():
        assert torch.equal(value, state(second.players)[key]), key
    assert whole.state().keys() == second.state().keys()
    for key, value in whole.state().items():
        assert torch.equal(value, second.state()[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_without_data_where_none_are_needed(name):
    build = made("distiller", name, 1)
    if name in ("ict", "ect", "tcm", "scott"):
        with pytest.raises(ValueError, match="needs real samples"):
            build(small(Flow(), data=False))
        return
    method = build(small(Flow(), data=False))
    before = [value.clone() for value in method.setting.teacher.state_dict().values()]
    train(method, 2)
    assert float(slopes(method, drawn(method)).norm()) > 0
    for a, b in zip(before, method.setting.teacher.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_every_row_of_a_batch_is_its_own():
    """The loss of a sample does not depend on the others, and the state at t has the law of the data noised."""
    method = Consistency(small(EDM()))
    batch = drawn(method, 8)
    whole = method.loss(batch)
    part = method.loss({name: {} if name == "condition" else value[3:4] for name, value in batch.items()})
    torch.testing.assert_close(whole[3:4], part, rtol=1e-4, atol=1e-6)


def test_the_target_is_the_state_itself_at_the_clean_end_whatever_the_network():
    process = EDM()
    base = perceptron(process, precondition="none")
    with torch.no_grad():
        base.network.last.bias.fill_(3.0)
    method = Consistency(Setting(plane(process), base, 5.0, data=points()))
    x, s = torch.randn(2, 2), torch.tensor([0.0, 1.0], dtype=F64)
    goal = method.target(x, s, {"condition": {}})
    assert torch.equal(goal[0], x[0])
    torch.testing.assert_close(goal[1], torch.full((2,), 3.0))


def test_the_averaged_target_follows_the_student_by_its_decay():
    method = Consistency(small(EDM(), iterations=4), average=0.75)
    weights = []
    for step in range(4):
        weights.append(method.student.network.first.weight.detach().clone())
        train(method, step + 1)
    average = weights[0]
    for later in weights[1:]:
        average = 0.75 * average + 0.25 * later
    assert method.behind.average is not None
    torch.testing.assert_close(method.behind.average.network.first.weight, average)
    plain = Consistency(small(EDM()), average=0.0)
    train(plain, 2)
    assert plain.behind.average is None and plain.state() == {}


def test_both_halves_of_a_pair_drop_the_same_units():
    """Of a student in training mode, at a pair of equal states and times: no difference, and none without the masks."""
    process, noise = EDM(), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = DiT(2, 4, width=32, depth=2, dropout=0.5)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    base = NetworkDenoiser(network.double(), process, "x0", (2, 4, 4), precondition="edm").train()
    method = Consistency(Setting(base, base, 5.0, data=points()), training=True)
    t = torch.tensor([3.0, 2.0], dtype=F64)
    x0, eps = (torch.randn(2, 2, 4, 4, generator=noise, dtype=F64) for _ in range(2))
    made_, goal = method.pair({"x0": x0, "eps": eps, "t": t, "s": t, "condition": {}})
    torch.testing.assert_close(made_, goal, rtol=0, atol=1e-12)  # kernels differ with a gradient and without
    again, _ = method.pair({"x0": x0, "eps": eps, "t": t, "s": t, "condition": {}})
    assert float((made_ - again).abs().max()) > 1e-3  # other units in the next iteration


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_walked_states_lie_on_the_teachers_paths(process):
    setting = exact(process)
    z = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = setting.times(float(process.time(-torch.tensor(0.3, dtype=F64).log())), 64)
    found = noisy(setting, {"z": z, "t": t, "condition": {}})
    with torch.no_grad():
        ends = gaussian(process, "map").flow(setting.begin(z), setting.times(setting.start, 64), t)
    assert float((found - ends).norm() / ends.norm()) < 0.03
    again = noisy(setting, {"z": z, "t": setting.times(setting.start, 64), "condition": {}})
    torch.testing.assert_close(again, setting.begin(z), rtol=0, atol=1e-12)


def test_where_states_come_from():
    setting = small(EDM(), data=False)
    assert drawn_from(setting) == "teacher" and drawn_from(small(EDM())) == "data"
    assert drawn_from(small(EDM()), "teacher") == "teacher"
    with pytest.raises(ValueError, match="needs real samples"):
        drawn_from(setting, "data")
    with pytest.raises(ValueError, match="unknown kind of states 'teachers'"):
        drawn_from(setting, "teachers")
