from __future__ import annotations

import pytest
import torch

from fewstep.distillation.memory import held, spoken_memory
from fewstep.training.players import optimise


def test_the_formula_is_what_torch_holds(setting):
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
    assert said.startswith("memory beside the activations: ") and "student " in said and "moments" in said
