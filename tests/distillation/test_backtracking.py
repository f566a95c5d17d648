"""Backtracking: the path from the teacher to the untrained student, and the way back."""

from __future__ import annotations

import pytest
import torch
from distillation.matched import built, jumper, law, learned, moved, resumes, setting, train

from fewstep.distillation import distill as module
from fewstep.distillation.backtracking import DisBack
from fewstep.processes.ve import EDM
from fewstep.training.checkpoint import checkpoints, load_checkpoint

INNER = ["diff-instruct", "dmd2", "sid", "sim"]


def test_the_path_leads_away_from_the_teacher_to_the_students_law():
    process = EDM()
    student = moved(jumper(process), 0.6)
    teacher, end = law(jumper(process)), law(student)
    whole = setting(student, teacher, teacher, iterations=400, lr=0.004)
    method = train(DisBack(whole, path=5, record=0.5), 201, batch=64)
    path = torch.stack([torch.cat([own["mean"], own["log_variances"]]) for own in method.path])
    first, last = (torch.cat([model.mean, model.log_variances]).detach() for model in (teacher, end))
    away, left = (path - first).norm(dim=1), (path - last).norm(dim=1)
    assert len(path) == 5
    assert (away.diff() > 0).all() and away[0] > 0
    assert (left.diff() < 0).all() and left[-1] < 0.4 * (last - first).norm()


def test_the_student_waits_in_the_first_stage():
    method = built("disback", iterations=20, record=0.4)
    before = [p.detach().clone() for p in method.players["student"].parameters]
    train(method, 8)
    assert all(torch.equal(a, b) for a, b in zip(before, method.players["student"].parameters, strict=True))
    train(method, 9, 8)
    assert not all(torch.equal(a, b) for a, b in zip(before, method.players["student"].parameters, strict=True))


def test_the_path_is_taken_backwards_and_the_teacher_last_and_longest():
    method = built("disback", iterations=100, record=0.2, path=3, last=0.4)
    train(method, 21)
    assert len(method.path) == 3
    order = []
    for step in range(20, 100):
        method.setting.step = step
        teacher = method.teacher()
        own = teacher.model.state_dict()
        same = [k for k, kept in enumerate(method.path) if all(torch.equal(own[name], kept[name]) for name in kept)]
        order.append("teacher" if teacher is method.setting.teacher else same[0])
    assert order == [2] * 16 + [1] * 16 + [0] * 16 + ["teacher"] * 32


def test_weights_are_kept_evenly():
    method = built("disback", iterations=100, record=0.2, path=3)
    kept = []
    for step in range(1, 21):
        train(method, step, step - 1)
        kept.append(len(method.path))
    assert kept == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5  # before the turns 5, 10 and 15
    assert torch.equal(method.past.state_dict()["network.first.weight"], method.setting.base.network.first.weight)


def test_the_gradient_is_the_inner_methods_towards_the_paths_teacher():
    method, plain = built("disback", iterations=20, record=0.5, path=1), built("diff-instruct", iterations=20)
    train(method, 10)
    method.setting.step = 10
    drawn = method.draw(5, torch.Generator().manual_seed(0))
    method.players["fake"].loss(drawn)  # keeps what is due
    found = method.players["student"].loss(drawn)
    for own, other in ((plain.student, method.student), (plain.fake, method.inner.fake)):
        own.load_state_dict(other.state_dict())
    plain.teacher.model.load_state_dict(method.path[0])
    assert torch.equal(found, plain.players["student"].loss(drawn))


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.slow  # the contract has one of each method
def test_it_resumes_bit_for_bit(inner):
    options = {"ratio": 2} if inner == "dmd2" else None
    assert resumes("disback", method=inner, options=options, record=0.3)


@pytest.mark.slow  # the contract has one of each method
def test_it_resumes_bit_for_bit_within_the_first_stage():
    assert resumes("disback", record=0.8, path=3)


DISTILL = {
    "iterations": 20, "batch": 8, "record": 0.5, "path": 3, "judge": False, "on_collapse": "go on", "lr": 1e-2,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:At iteration")
@pytest.mark.parametrize("stop_at", [7, 14])  # while weights are kept, and while they are gone back to
def test_with_a_folder_the_path_is_in_files_and_resumes_bit_for_bit(teacher, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(module, "CHECKED", 24)
    monkeypatch.setattr(module, "CHECK_NFE", 8)
    held = module.distill(teacher, "disback", **DISTILL)

    def stop(found):
        if found["step"] == stop_at and "distance" in found:
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        module.distill(teacher, "disback", out=run, tell=stop, check_every=1, **DISTILL)
    tensors, _ = load_checkpoint(checkpoints(run)[-1])
    assert not [name for name in tensors if "path" in name]
    assert int(tensors["method.files"]) == len(list((run / "path").iterdir())) == (2 if stop_at == 7 else 3)
    whole = module.distill(teacher, "disback", out=run, resume=True, check_every=1, **DISTILL)
    again = module.distill(teacher, "disback", check_every=1, **DISTILL)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert held.figures["evaluations"] == whole.figures["evaluations"]
    (run / "path" / "1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"1.safetensors is gone, which this run goes back to"):
        module.distill(teacher, "disback", out=run, resume=True, check_every=1, **DISTILL)


def test_a_run_of_few_iterations_has_a_path_as_well():
    method = train(built("disback", iterations=3), 3)
    assert len(method.path) == 4


def test_what_it_refuses():
    for options, said in [
        ({"method": "dmd3"}, "did you mean 'dmd2'"),
        ({"method": "dmd"}, "unknown method to backtrack with 'dmd'"),
        ({"path": 0}, "path must be at least 1"),
        ({"record": 1.0}, "record and last in"),
        ({"last": 0.1}, "the real teacher must have the longest share"),
        ({"options": {"ration": 2}}, "did you mean 'ratio'"),
    ]:
        with pytest.raises(ValueError, match=said):
            built("disback", **options)


@pytest.mark.slow
def test_it_learns():
    before, after = learned("disback", 600, method="dmd2", options={"gan": 0.0})
    assert after < before / 3
