"""The formula of memory against what torch holds, found by walking all tensors that are alive."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
from distillation.matched import perceptron, points, shaken

from fewstep.core.methods import made
from fewstep.distillation import method as method_module
from fewstep.distillation.memory import Held, demand, free, held, spoken_memory, too_much, total
from fewstep.distillation.method import Setting
from fewstep.distillation.state import DistillState
from fewstep.training.players import optimise


def alive() -> dict[int, int]:
    """Bytes of every piece of memory behind a tensor in this process, gradients included, by its address."""
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            for each in (thing, thing.grad if thing.is_leaf else None):
                if each is not None and each.device.type == "cpu":
                    storage = each.untyped_storage()
                    with contextlib.suppress(RuntimeError):  # tensors of an exported program have no memory
                        found[storage.data_ptr()] = storage.nbytes()
    return found


CASES = {
    "copies": ("dmd2", {"gan": 0.0}, None),
    "adapter": ("dmd2", {"gan": 0.0}, 4),
    "two adapters": ("dmd2", {"gan": 0.0, "fake": "lora"}, 4),
    "heads": ("dmd2", {"features": ["block.1"], "fake": "lora"}, 4),
    "an averaged target": ("ict", {"curriculum": "root", "average": True}, None),
    "backtracking": ("disback", {"path": 3, "record": 0.4}, None),
    "a map": ("ctm", {}, 4),
}


@pytest.mark.parametrize("case", CASES)
def test_the_formula_is_what_torch_holds(case):
    """Of a run of some iterations and a check, at the moment when the largest player has its gradients."""
    name, options, lora = CASES[case]
    base = shaken(perceptron(classes=3, width=128, depth=4)).requires_grad_(False)
    gc.collect()
    before = alive()
    setting = Setting(base, base, 2.5, steps=2, iterations=10, data=points(), data_std=0.5, lr=1e-3, ema=0.9, lora=lora)
    method = made("distiller", name, 1, **options)(setting)
    state = DistillState(method, {}, seed=3, batch=2, accelerator=None)
    held_at = []
    for player in method.players.values():
        step = player.optimizer.step

        def measured(step=step):
            step()
            held_at.append(sum(size for place, size in alive().items() if place not in before))

        player.optimizer.step = measured
    state.run(6)
    model = state.averaged()
    state.kept.update({key: value.clone() for key, value in state.weights(model).items()})
    del model
    gc.collect()
    state.run(10)
    parts = held(setting.teacher, method.players, method.copies())
    assert max(held_at) == pytest.approx(total(parts) - parts["teacher"].total, rel=0.05)
    if lora:
        whole = sum(p.numel() * 4 for p in base.parameters())
        assert parts["student"].weights < 0.25 * whole and parts["student"].moments < 0.5 * whole


def test_what_is_claimed_is_what_is_held(monkeypatch):
    """The numbers before the work are those of the line that is printed."""
    base = shaken(perceptron(classes=3))
    for lora in (None, 2):
        whole = Setting(base, base, 2.5, lora=lora)
        method = made("distiller", "diff-instruct", 1)(whole)
        parts = held(whole.teacher, method.players)
        del parts["teacher"]
        assert whole.claimed == sum(part.total for part in parts.values())
    with pytest.raises(ValueError, match=r"the networks that train need .* MB .*--lora 8, lora=8"):
        made("distiller", "diff-instruct", 1)(Setting(base, base, 2.5, lora=2, free=whole.claimed - 1))
    monkeypatch.setattr(method_module, "demand", lambda *_: Held(10))
    made("distiller", "diff-instruct", 1)(Setting(base, base, 2.5, free=20))


def test_each_part_is_what_its_player_holds(setting):
    made = setting()
    student, fake = made.student(), made.student()

    def loss_of(model):
        return lambda drawn: model(drawn["z"], made.times(2.0, 6)).x0.square().sum(1)

    players = {"fake": made.player(fake, loss_of(fake))}
    players["student"] = made.player(student, loss_of(student), average=True)
    found = held(made.teacher, players)
    seen = {}

    def backward(losses, drawn, parameters):
        losses.mean().backward(inputs=list(parameters))
        seen["gradients"] = sum(p.grad.numel() * p.grad.element_size() for p in parameters)

    players["student"].backward = backward
    optimise(players, lambda b, g: {"z": made.noise(b, g)}, steps=1, batch=6)

    def size(tensors):
        return sum(t.numel() * t.element_size() for t in tensors)

    moments = size(v for state in players["student"].optimizer.state.values() for v in state.values())
    student_held = found["student"]
    assert student_held.weights == size([*student.parameters(), *student.buffers()])
    assert student_held.gradients == seen["gradients"]
    assert student_held.moments == pytest.approx(moments, rel=0.05)  # and a step count of each parameter
    assert student_held.average == size(players["student"].average.average.values())
    assert found["fake"].average == 0 and found["teacher"].gradients == 0
    assert found["teacher"].total == size([*made.teacher.parameters(), *made.teacher.buffers()])


def test_what_is_shared_is_counted_once(setting):
    made = setting()
    student = made.student()
    player = made.player(student, lambda drawn: torch.zeros(1))
    assert held(student, {"student": player})["student"].weights == 0
    said = spoken_memory(held(made.teacher, {"student": player}))
    assert 0 < free(torch.device("cpu")) and "3e+03 MB" in too_much(3e9, 1e9)
    assert demand(student, True).average == 4 * sum(p.numel() for p in student.parameters())
    assert said.startswith("memory beside the activations: ") and "student " in said and "moments" in said
