"""The router of students: each row has its own student's answer, in whatever order; parts that are none are refused."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.conditions.text import Text
from fewstep.core.memory import Memory, ask
from fewstep.core.student import Student
from fewstep.denoisers.by_condition import ByCondition, check_parts, word_counts
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet
from fewstep.processes.ve import EDM

PARTS = [[0, 3], [2], [1]]


def one(seed: int) -> NetworkDenoiser:
    torch.manual_seed(seed)
    network = MLP((2,), 8, 2, 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return NetworkDenoiser(network.eval(), EDM(), "x0", (2,), {"label": Label(4)}, "edm")


@pytest.fixture(scope="module")
def students() -> list[NetworkDenoiser]:
    return [one(seed) for seed in range(3)]


@torch.no_grad()
@pytest.mark.parametrize("each", [False, True])
def test_each_row_has_its_own_students_answer_in_any_order(students, each):
    routed, generator = ByCondition(students, PARTS), torch.Generator().manual_seed(0)
    x, label = torch.randn(24, 2, generator=generator), torch.arange(24) % 5  # 4 is no label, the first one's
    t = torch.rand(24, generator=generator) + 0.1 if each else torch.tensor(0.7)
    owner = {0: 0, 3: 0, 4: 0, 2: 1, 1: 2}
    for order in (torch.arange(24), torch.randperm(24, generator=generator), label.argsort()):
        now = t[order] if each else t
        found = routed(x[order], now, label=label[order]).value
        for number, student in enumerate(students):
            rows = torch.tensor([i for i, k in enumerate(label[order].tolist()) if owner[k] == number])
            own = student(x[order][rows], now[rows] if each else now, label=label[order][rows])
            assert torch.equal(found[rows], own.value)


@torch.no_grad()
def test_captions_go_to_the_nearest_centre(students):
    words = ("a", "red", "blue", "circle", "square")
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = UNet(1, 4, (8,), attention=(4,), classes=None, vocabulary=5, captions=3, embedding=8)
        torch.nn.init.normal_(network.last.weight)
        models.append(NetworkDenoiser(network.eval(), EDM(), "x0", (1, 4, 4), {"text": Text(words, 3)}, "edm"))
    centres = word_counts(torch.tensor([[1, 2, 4], [1, 3, 5]]), 5)
    routed, x, t = ByCondition(models, centres=centres), torch.randn(3, 1, 4, 4), torch.tensor(0.5)
    text = routed.check_condition({"text": ["blue square", "red circle", "a red square"]}, 3, x.device)["text"]
    assert routed.route({"text": text}, 3).tolist() == [1, 0, 0]  # the last is as near to both
    found = routed(x, t, text=text).value
    assert torch.equal(found[:1], models[1](x[:1], t, text=text[:1]).value)
    assert torch.equal(found[1:], models[0](x[1:], t, text=text[1:]).value)


def test_it_counts_as_one_evaluation_and_a_run_remembers_by_student(students):
    routed = ByCondition(students, PARTS)
    result = fs.plan(routed.process, "ddim", 3).run(routed, torch.randn(6, 2), label=torch.arange(6) % 4)
    assert result.nfe == 3
    memory = Memory(6, (0.5,), 0.0)
    memory.advance()
    ask(routed, torch.randn(6, 2), torch.tensor(0.5), memory, {"label": torch.arange(6) % 4})
    assert memory.seen == 6


def test_it_is_saved_with_what_it_is(students, tmp_path):
    routed = ByCondition(students, PARTS, student=Student("jump", "msd", "digits", 3.0))
    again = fs.load(fs.save(routed, tmp_path / "several"))
    assert again.student == routed.student and again.parts == PARTS and again.student.kind == "jump"
    x, label = torch.randn(8, 2), torch.arange(8) % 4
    assert torch.equal(again(x, torch.tensor(0.3), label=label).value, routed(x, torch.tensor(0.3), label=label).value)


def test_parts_that_are_none():
    for parts, said in (
        ([[0, 1], [3]], "class 2 is in no part: every class is in one"),
        ([[0, 1], [2, 1, 3]], "class 1 is in part 0 and part 1: every class is in one"),
        ([[0, 0, 1], [2, 3]], "class 0 is in part 0 twice"),
        ([[0, 1, 2, 3], []], "part 1 has no class"),
        ([[0, 1], [2, 3, 4]], "part 1 has 4, which is no class: they are 0 to 3"),
        ([[0, 1], [2, "3"]], "part 1 has '3', which is no class"),
    ):
        with pytest.raises(ValueError, match=said):
            check_parts(parts, 4)


def test_what_it_refuses(students):
    with pytest.raises(ValueError, match="class 1 is in no part"):
        ByCondition(students[:2], [[0, 3], [2]])
    with pytest.raises(ValueError, match="2 denoisers have as many parts, got 3"):
        ByCondition(students[:2], PARTS)
    with pytest.raises(ValueError, match="give either parts, the classes of each student, or centres"):
        ByCondition(students)
    with pytest.raises(ValueError, match="needs a model that is conditioned on a caption of words"):
        ByCondition(students, centres=torch.zeros(3, 5))
    with pytest.raises(ValueError, match="needs a model that is conditioned on a label"):
        ByCondition([GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, EDM())], [[0]])
