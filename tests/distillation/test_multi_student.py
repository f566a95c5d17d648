"""Several students: what each sees, the stages, smaller ones, parts by k-means, and what is no partition."""

from __future__ import annotations

import pytest
import torch
from distillation.matched import built, perceptron, points, shaken, train
from distillation.short import RUN, equal, weights

import fewstep as fs
from fewstep.conditions.text import Text
from fewstep.core.methods import made
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.by_condition import ByCondition
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.distances import squared
from fewstep.distillation.method import Setting
from fewstep.networks.unet import UNet
from fewstep.processes.ve import EDM

PARTS = [[0, 2], [1]]


def drawn_by(method, n: int = 7):
    return method.setting.mine(method.draw(n, torch.Generator().manual_seed(0)))


def test_each_student_sees_its_part_alone_and_shares_nothing():
    method = built("msd", parts=PARTS)
    method.setting.hidden = 0.0
    for one in method.methods:
        one.setting.hidden = 0.0
    drawn = drawn_by(method)
    assert [len(drawn[k]["t"]) for k in "01"] == [4, 3]
    data = points()
    for number, part in enumerate(PARTS):
        own = drawn[str(number)]
        assert set(own["condition"]["label"].tolist()) <= set(part)
        known = (own["x0"][:, None] == data.raw).all(-1)
        assert known.any(1).all() and (data.labels[known.float().argmax(1)] == own["condition"]["label"]).all()
    method.setting.step = method.setting.iterations
    losses = method.players["student"].loss(drawn)
    assert losses.shape == (7,)
    students = [list(one.student.parameters()) for one in method.methods]
    for number, own in enumerate(students):
        mine, others = losses.split([4, 3])[number].sum(), students[1 - number]
        assert any(p is not None and p.any() for p in torch.autograd.grad(mine, own, retain_graph=True))
        rest = torch.autograd.grad(mine, others, retain_graph=True, allow_unused=True)
        assert not any(part is not None and part.any() for part in rest)
    assert not {id(p) for p in students[0]} & {id(p) for p in students[1]}


def test_judged_from_the_start_its_losses_are_those_of_dmd2():
    ours, theirs = built("msd", parts=[[0, 1, 2]], judged=0.0, gan=0.5), built("dmd2", gan=0.5)
    drawn = drawn_by(ours)
    for name in ("fake", "student"):
        found, expected = ours.players[name].loss(drawn), theirs.players[name].loss(drawn["0"])
        assert torch.equal(found, expected)
    ours.joins = 1.0  # and without the discriminator
    plain = built("dmd2", gan=0.0)
    for name in ("fake", "student"):
        assert torch.equal(ours.players[name].loss(drawn), plain.players[name].loss(drawn["0"]))


def test_the_stages():
    method = built("msd", 20, parts=PARTS, network={"width": 4}, warm=0.25, ratio=1)
    stages = []
    for step in range(20):
        method.setting.step = step
        stages.append(method.stage)
    assert stages == ["warm"] * 5 + ["matched"] * 5 + ["judged"] * 10
    heads = [one.discriminator for one in method.methods]
    fakes = [one.fake for one in method.methods]

    def moved(before: list, modules: list) -> list[bool]:
        return [not equal(a, weights(b)) for a, b in zip(before, modules, strict=True)]

    for last, first, of_fakes, of_heads in ((5, 0, False, False), (10, 5, True, False), (12, 10, True, True)):
        before = [[weights(one) for one in modules] for modules in (fakes, heads)]
        own = weights(method.student)
        train(method, last, first)
        assert moved(before[0], fakes) == [of_fakes] * 2 and moved(before[1], heads) == [of_heads] * 2
        assert not equal(own, weights(method.student))


def test_the_first_stage_regresses_the_teachers_answers():
    method = built("msd", parts=PARTS, warm=0.5)
    shaken(method.student)
    drawn, own = drawn_by(method), []
    for number, one in enumerate(method.methods):
        part = drawn[str(number)]
        x_t = method.setting.noised(part["x0"], part["eps"], part["t"])
        answers = [m(x_t, part["t"], **part["condition"]).x0 for m in (one.student, method.setting.base)]
        own.append(squared(*answers))
    assert torch.equal(method.players["student"].loss(drawn), torch.cat(own))
    assert not method.players["fake"].loss(drawn).any()


def test_smaller_students_have_a_network_of_their_own_size():
    method = built("msd", parts=PARTS, network={"width": 4})
    assert method.warm == 0.2 and built("msd", parts=PARTS).warm == 0
    assert [one.student.network.config()["width"] for one in method.methods] == [4, 4]
    assert method.methods[0].fake.network.config()["width"] == 8
    assert not equal(*(weights(one.student) for one in method.methods))
    train(method, 6)
    for options, said in (({"widht": 4}, "did you mean 'width'"), ({"width": 0}, "width")):
        with pytest.raises(ValueError, match=said):
            built("msd", parts=PARTS, network=options)


def test_parts_of_classes_by_their_mean_pictures():
    base, raw = shaken(perceptron(classes=4)), torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 4
    raw = 0.1 * raw + torch.tensor([[1.0, 1.0], [-1.0, 0.0], [1.1, 0.9], [-1.1, 0.1]])[labels]
    data = Dataset(DataSpec("four", (2,), (-2.0, 2.0), 4, 40), raw, labels)
    method = made("distiller", "msd", 1, parts=2)(Setting(base, base, 2.5, data=data, data_std=0.5))
    assert sorted(method.student.parts) == [[0, 2], [1, 3]]
    for count in (0, 5):
        with pytest.raises(ValueError, match="parts must be 1 to 4, the number of classes, got"):
            made("distiller", "msd", 1, parts=count)(Setting(base, base, 2.5, data=data, data_std=0.5))
    only = Setting(base, base, 2.5, data=data, data_std=0.5, given={"label": torch.tensor([0, 1])})
    given = made("distiller", "msd", 1, parts=[[0, 2], [1, 3]])(only)
    assert [one.setting.given["label"].tolist() for one in given.methods] == [[0], [1]]


def test_captions_are_parted_by_their_words():
    words = ("a", "red", "blue", "circle", "square")
    torch.manual_seed(0)
    network = UNet(1, 4, (8,), attention=(4,), classes=None, vocabulary=5, captions=3, embedding=8)
    base = NetworkDenoiser(network, EDM(), "x0", (1, 4, 4), {"text": Text(words, 3)}, "edm")
    captions = torch.tensor([[1, 2, 4], [1, 3, 5]])[torch.arange(30) % 2]
    data = Dataset(
        DataSpec("two", (1, 4, 4), (-1.0, 1.0), None, 30), torch.randn(30, 1, 4, 4), given={"text": captions}
    )
    method = made("distiller", "msd", 1, parts=2)(Setting(base, base, 2.5, data=data, data_std=0.5))
    drawn = method.setting.mine(method.draw(8, torch.Generator().manual_seed(0)))
    for number in range(2):
        text = drawn[str(number)]["condition"]["text"]
        assert (text == text[0]).all() and (method.student.route({"text": text}, 4) == number).all()
    assert not torch.equal(drawn["0"]["condition"]["text"], drawn["1"]["condition"]["text"])
    with pytest.raises(ValueError, match="this model has captions and no classes: parts is"):
        made("distiller", "msd", 1, parts=PARTS)(Setting(base, base, 2.5, data=data, data_std=0.5))


@pytest.mark.filterwarnings("ignore:At iteration")
def test_a_run_saves_one_folder_whose_students_are_routed(tmp_path):
    base = built("dmd2").setting.base
    found = fs.distill(base, "msd", parts=PARTS, network={"width": 4}, data=points(), out=tmp_path / "run", **RUN)
    again = fs.load(tmp_path / "run")
    assert isinstance(again, ByCondition) and again.student == found.model.student and again.student.kind == "jump"
    label = torch.arange(6) % 3
    samples = [fs.sample(model, 6, label=label, seed=1) for model in (found.model, again)]
    assert torch.equal(*samples) and again.plan.nfe == 1


def test_what_it_refuses():
    for options, said in (
        ({"parts": [[0, 1]]}, "class 2 is in no part: every class is in one"),
        ({"parts": [[0, 1], [1, 2]]}, "class 1 is in part 0 and part 1"),
        ({"warm": 0.6}, "warm and judged are shares from 0 to 1, the first no larger"),
        ({"judged": 1.5}, "warm and judged are shares"),
        ({"gan": -1.0}, "must be at least 0"),
        ({"part": 2}, "did you mean 'parts'"),
    ):
        with pytest.raises(ValueError, match=said):
            built("msd", **({"parts": PARTS} | options))
    base = perceptron()
    with pytest.raises(ValueError, match="this model is conditioned on neither label nor caption"):
        made("distiller", "msd", 1)(Setting(base, base, 2.5, data=points(classes=None), data_std=0.5))
    whole = built("msd", parts=PARTS).setting
    with pytest.raises(ValueError, match="several students have weights of their own: leave lora out"):
        made("distiller", "msd", 1, parts=PARTS)(Setting(whole.base, whole.base, 2.5, data=points(), lora=2))
    small = Setting(whole.base, whole.base, 2.5, data=points(), batch=2)
    with pytest.raises(
        ValueError, match=r"a batch \(of each process\) has at least one sample for each of the 3 students"
    ):
        made("distiller", "msd", 1, parts=[[0], [1], [2]])(small)
