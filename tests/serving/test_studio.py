"""What the studio's buttons do, and what they show, without a page."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shlex
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from serving.gated import Gated
from serving.http import encoded, pixels

import fewstep as fs
from fewstep.processes.ve import EDM
from fewstep.report.grid import to_pixels
from fewstep.serving import studio_accelerate, studio_draw, studio_shown
from fewstep.serving.engine import Full
from fewstep.serving.models import Models
from fewstep.serving.service import Service
from fewstep.serving.studio_accelerate import Hunt, Hunts, Stopped
from fewstep.serving.studio_compare import compare
from fewstep.serving.studio_draw import AREAS, Settings, area, draw, line, painted, read_plan, read_seeds, start_from

SHAPE, SMALL = (1, 8, 8), (1, 4, 4)


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def board(marked: np.ndarray) -> str:
    """What the page sends of a board on which this is marked."""
    colours = np.zeros((*marked.shape, 4), np.uint8)
    colours[marked] = (209, 0, 75, 255)
    return "data:image/png;base64," + base64.b64encode(encoded(Image.fromarray(colours))).decode()


def last(service, settings, sent=None):
    *_, view = draw(service, settings.asked(), sent)
    return view


def again(view, folder, monkeypatch) -> list[np.ndarray]:
    """What the pictures' command draws, from the files that the page offers."""
    from fewstep.cli.main import run

    monkeypatch.chdir(folder)
    for name, data in view.files.items():
        (folder / name).write_bytes(data)
    command = view.facts[0]["command"]
    assert run(shlex.split(command)[1:]) == 0
    return [pixels(Image.open(path)) for path in sorted((folder / "pictures").glob("*.png"))]


def test_fields_become_a_request():
    assert Settings(seeds="7", n="4", steps="6").asked() == {"seed": 7, "n": 4, "steps": 6}
    full = Settings("a red circle", "3", "1, 2 3", 8, "", "ddim", "karras", "1.5", "a cross").asked()
    assert full == {"seeds": [1, 2, 3], "prompt": "a red circle", "negative": "a cross", "guidance": 1.5, "label": 3,
                    "solver": "ddim", "timesteps": "karras"}  # fmt: skip
    plan = {"some": "plan"}
    assert Settings(steps="6", solver="ddim", plan=plan).asked() == {"n": 8, "plan": plan}
    assert Settings(n="").asked() == {"n": 1}
    assert Settings(seeds="").asked() == {"n": 8} and read_seeds(" 0,9223372036854775807 ") == [0, 2**63 - 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(seeds="seven"), "seeds are whole numbers from 0 to 9223372036854775807, got 'seven'"),
        (Settings(seeds="-1"), "seeds are whole numbers"),
        (Settings(seeds="9223372036854775808"), "seeds are whole numbers"),
        (Settings(seeds="²"), "seeds are whole numbers"),
        (Settings(n="2.5"), "the number of pictures must be a whole number, got '2.5'"),
        (Settings(n="0"), "the number of pictures must be at least 1, got 0"),
        (Settings(steps="many"), "the number of steps must be a whole number, got 'many'"),
        (Settings(steps="inf"), "must be a whole number"),
        (Settings(guidance="nan"), "guidance must be a number, got 'nan'"),
        (Settings(label="x"), "the label must be a whole number"),
    ],
)
def test_what_is_no_number_is_said(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        settings.asked()


@pytest.fixture(scope="module")
def service():
    """A model whose evaluations take next to no time, and whose bits are the same in calls of any size."""
    models = Models({"small": "small"}, lambda _: Gated(shape=SMALL))
    yield Service(models)
    models.close()


@pytest.mark.parametrize("data", [b"\xff\xfe", b"no", b"[1]", b"[" * 100_000, b'{"ops": 3}', b"{}"])
def test_files_that_are_no_plan(data):
    with pytest.raises(ValueError) as failed:
        read_plan(data)
    assert line(failed.value)[1] and len(line(failed.value)[0]) < 400


def test_a_picture_is_seen_as_it_forms(served):
    settings = Settings(label="3", seeds="7", n=2, steps="6")
    views = [
        (view.done, [estimate.evaluation for estimate in view.way]) for view in draw(served.service, settings.asked())
    ]
    assert [done for done, _ in views] == [False] * (len(views) - 1) + [True]
    assert views[-1][1] == [1, 2, 3, 4, 5, 6]
    view = last(served.service, settings)
    plan = fs.sampling.sample.choose_plan(fs.load("digits"), 6)
    assert [estimate.t for estimate in view.way] == [evaluation.t for evaluation in plan.evaluations]
    assert sorted(estimate.seconds for estimate in view.way) == [estimate.seconds for estimate in view.way]
    there = pixels(opened(view.latest[0])).astype(float)
    far = [np.abs(pixels(opened(estimate.png)) - there).mean() for estimate in view.way]
    assert far[0] > far[3] > far[5] == 0  # nearer and nearer
    expected = to_pixels(fs.sample(fs.load("digits"), 16, label=3, seed=7, steps=6)[:2])
    assert all(np.array_equal(pixels(opened(png)), one) for png, one in zip(view.latest, expected, strict=True))


def test_of_many_evaluations_fifty_are_shown(service):
    for steps, expected in ((50, list(range(1, 51))), (200, [*(round(200 * k / 51) for k in range(1, 51)), 200])):
        view = last(service, Settings(label="1", seeds="7", n=1, steps=steps, solver="ddim"))
        assert [estimate.evaluation for estimate in view.way] == expected


def test_a_picture_of_a_plan_is_made_again_from_what_the_page_offers(served, tmp_path, monkeypatch):
    plan = fs.plan(fs.load("digits").process, "unipc-2", steps=4)
    view = last(served.service, Settings(label="5", seeds="3", n=20, steps="9", plan=json.loads(plan.to_json())))
    assert view.drawing.nfe == 4 and view.facts[0]["nfe"] == 4 and json.loads(view.facts[0]["plan"])
    assert list(view.files) == ["plan.json"] and read_plan(view.files["plan.json"]) == json.loads(plan.to_json())
    made = again(view, tmp_path, monkeypatch)
    assert len(made) == 20
    assert all(np.array_equal(one, pixels(opened(png))) for one, png in zip(made, view.latest, strict=True))


def test_inpainting_keeps_what_is_not_marked_and_is_made_again(served, tmp_path, monkeypatch):
    source = last(served.service, Settings(label="7", seeds="1", n=1, steps="4")).latest[0]
    taken = start_from(served.service.models._running["digits"].served, source, 10_000)
    assert np.array_equal(pixels(opened(taken)), pixels(opened(source)))
    marked = np.zeros((8, 8), bool)
    marked[2:5, 3:7] = True
    sent = {"init": taken, "mask": painted(board(marked), SHAPE)}
    view = last(served.service, Settings(label="1", seeds="2", n=20, steps="4"), sent)
    for png in view.latest:
        changed = pixels(opened(png)) != pixels(opened(source))
        assert changed.any() and not changed[~marked].any()
    assert list(view.files) == ["init.png", "mask.png"]
    made = again(view, tmp_path, monkeypatch)
    assert all(np.array_equal(one, pixels(opened(png))) for one, png in zip(made, view.latest, strict=True))


def test_masks():
    for _ in range(3):
        marked = np.random.default_rng(_).random((8, 8)) < 0.3
        assert np.array_equal(pixels(opened(painted(board(marked), SHAPE))), np.where(marked, 255, 0))
    assert {name: int(pixels(opened(area(name, (3, 32, 32)))).astype(bool).sum()) for name in AREAS} == {
        "the upper half": 512, "the lower half": 512, "the left half": 512, "the right half": 512, "the middle": 256,
    }  # fmt: skip
    assert pixels(opened(area("the upper half", SHAPE)))[:4].all()
    for text in ("", board(np.zeros((8, 8), bool))):
        with pytest.raises(ValueError, match="nothing is marked: paint over what is to be drawn anew"):
            painted(text, SHAPE)
    with pytest.raises(ValueError, match="8x8 pixels"):
        painted(board(np.ones((4, 4), bool)), SHAPE)
    with pytest.raises(ValueError, match="the mask"):
        painted("no picture", SHAPE)


def test_a_comparison_is_from_the_same_noises_and_has_the_right_distances(service):
    common = Settings(label="2", seeds="5", n=8)
    rows = [Settings(solver="dpmpp-2m", steps="5"), Settings(solver="ddim", steps="10", guidance="2")]
    seen = [[row.name for row in found] for found in map(list, compare(service, common, rows))]
    plain, guided, one, two = found = list(compare(service, common, rows))[-1]
    assert [len(names) for names in seen] == [1, 2, 3, 4]
    assert [row.reference for row in found] == [True, True, False, False]
    assert (plain.nfe, one.nfe, two.nfe) == (100, 5, 10) and plain.distance is None
    assert [row.guidance for row in found] == [None, 2.0, None, 2.0] and all(row.seconds > 0 for row in found)
    model = Gated(shape=SMALL)
    for row, solver, steps, base in (
        (one, "dpmpp-2m", 5, model),
        (two, "ddim", 10, fs.guide(model, "cfg", scale=2.0)),
    ):
        x, there = (
            fs.sample(base, 16, label=2, seed=5, plan=plan)[:8].double().flatten(1)
            for plan in (
                fs.plan(model.process, solver, steps=steps),
                fs.plan(model.process, "vab-3", nfe=100, timesteps="karras"),
            )
        )
        assert row.distance == pytest.approx(float((x - there).norm(dim=1).mean() / there.norm(dim=1).mean()), rel=1e-5)
    about = [studio_draw.told(png) for png in one.pictures]
    assert [(fact["seed"], fact["number"]) for fact in about] == [(5, k) for k in range(8)]
    shown = studio_shown.comparison(found, "AB", lambda png: "/kept", SMALL, "small")
    assert shown.count("<img") == 32 and "A: dpmpp-2m" in shown and "B: ddim, guidance 2" in shown
    assert shown.count('download="plan.json"') == 2  # those of the references


def test_samplers_with_noise_of_their_own_have_no_distance(service):
    rows = [Settings(solver="ddpm", steps="5"), Settings(steps="5")]
    *_, found = compare(service, Settings(n=2), rows)
    assert found[1].distance is None and found[2].distance > 0
    assert "no distance" in studio_shown.comparison(found, "AB", lambda png: "/kept", SMALL, "small")
    seeds = [[studio_draw.told(png)["seed"] for png in row.pictures] for row in found]
    assert seeds[0] == seeds[1] == seeds[2]  # where none is given there is one for all
    with pytest.raises(ValueError, match="unknown solver"):
        next(compare(service, Settings(), [Settings(solver="nothing"), Settings()]))
    other = json.loads(fs.plan(EDM(), "ddim", steps=3).to_json())
    with pytest.raises(ValueError, match="the plan was made for another process than the model's"):
        next(compare(service, Settings(), [Settings(plan=other), Settings()]))


def test_numbers_out_of_range_are_refused_before_a_plan_is_made(service):
    many = Settings(steps=10**12)
    with pytest.raises(ValueError, match="steps must be 1 to 250, got 1000000000000"):
        next(draw(service, many.asked()))
    with pytest.raises(ValueError, match="steps must be 1 to 250, got 1000000000000"):
        next(compare(service, Settings(), [Settings(), many]))


@pytest.fixture(scope="module")
def hunted(few_candidates, make_mixture):
    """A whole search, and what there was to see on its way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studio_accelerate, "NFES", (2, 4, 8, 16))
        return search(make_mixture(EDM()))


def search(model):
    hunt = Hunt(model, 3, 40, 1)
    seen: list[tuple[int, int]] = []
    changed = hunt._changed

    def look() -> None:
        changed()
        seen.append((sum(map(len, hunt.curves.values())), len(hunt.learned)))

    hunt._changed = look  # type: ignore[method-assign]
    hunt.start()._thread.join(120)
    return hunt, seen


def test_a_search_is_watched(hunted):
    hunt, seen = hunted
    assert hunt.done and not hunt.wrong and hunt.plan is not None
    assert fs.Plan.from_json(json.dumps(hunt.plan)).nfe == 3
    assert seen == sorted(seen) and len({points for points, _ in seen}) > 10 and seen[-1][1] >= 3
    assert {solver: sorted(found)[-1] for solver, found in hunt.curves.items()} == {
        solver: 16 for solver in studio_accelerate.SOLVERS
    }
    ddim = hunt.curves["ddim"]
    assert list(ddim) == [2, 3, 4, 8, 16] and ddim[16] < ddim[8] < ddim[4]
    assert hunt.judged < min(found[3] for found in hunt.curves.values())
    assert hunt.learned == sorted(hunt.learned, reverse=True) and hunt.tried > 30
    plot = hunt.plot()
    assert [name for name, _, _ in plot.series] == [
        *studio_accelerate.SOLVERS, f"best of {hunt.tried} plans tried", "learned, after each iteration",
        "the plan found",
    ]  # fmt: skip
    assert plot.series[-1][1:] == ([3], [hunt.judged])
    assert hunt.status().startswith("found a plan of 3 evaluations in ")
    shown = studio_shown.verdict(hunt.notes, json.dumps(hunt.plan))
    data = re.search(r"data:application/json;base64,([^\"]+)", shown)
    assert data is not None and read_plan(base64.b64decode(data[1])) == hunt.plan


def test_the_error_of_the_plan_found_is_that_on_noises_it_has_not_seen(hunted, make_mixture):
    from fewstep.searching.reference import relative_error, solve

    hunt, _ = hunted
    model = make_mixture(EDM())
    problem = solve(model, 1, 0, 40, 100, torch.float32)
    found = fs.Plan.from_json(json.dumps(hunt.plan))(model, problem.noise, seed=1)
    assert hunt.judged == pytest.approx(relative_error(found, problem.reference), rel=1e-3)


def test_a_search_is_stopped_and_is_alone(make_mixture, monkeypatch):
    hunt = Hunt(make_mixture(EDM()), 3, 40, 1)
    hunt.stop()
    with pytest.raises(Stopped):
        hunt.watch("call", {})
    hunt.start()._thread.join(60)
    assert hunt.done and hunt.plan is None and "no plan was found" in hunt.status() and hunt.wait(0, 0) >= 1
    assert studio_shown.plotted(hunt.plot()) == ""
    monkeypatch.setattr(Hunt, "start", lambda self: self)
    hunts = Hunts()
    one, two = (Hunt(make_mixture(EDM()), 3, 40, 1) for _ in range(2))
    hunts.start("a", one)
    with pytest.raises(ValueError, match="is running already"):
        hunts.start("b", two)
    hunts.leave("a")
    assert one.stopping and hunts.get("a") is None
    with pytest.raises(ValueError, match="is running already"):  # it has not ended yet
        hunts.start("b", two)
    one.done = True
    assert hunts.start("b", two) is two and hunts.get("b") is two
    hunts.close()
    assert two.stopping


def test_a_search_that_breaks_says_so_in_a_line(make_mixture):
    model = make_mixture(EDM())
    model.forward = lambda *_, **__: 1 / 0
    hunt = Hunt(model, 3, 40, 1).start()
    hunt._thread.join(60)
    assert hunt.done and hunt.status() == "the model failed (ZeroDivisionError): the terminal says more"
    for numbers, message in (
        ((0, 40, 1), "the number of evaluations must be 1 to 100, got 0"),
        ((3, 39, 1), "the number of noises must be 40 to 4096, got 39"),
        ((3, 40, None), "the number of iterations must be 1 to 1000, got None"),
    ):
        with pytest.raises(ValueError, match=message):
            Hunt(model, *numbers)


def test_what_is_shown(served):
    kept = served.service.kept
    views = []
    for view in draw(served.service, Settings(label="3", seeds="7", n=3, steps="4").asked()):
        views.append(studio_shown.drawing(view, lambda png: f"/v1/images/files/{kept.add(png)}.png", "digits"))
    assert all(re.search(r"evaluation \d of 4 · t = [\d.]+ · \d+\.\d\d s", said) for said, _ in views[:-1])
    said, shown = views[-1]
    assert 'role="status"' in said and "3 pictures · 4 evaluations each of universal" in said
    links = re.findall(r'href="(/v1[^"]+)" download="([^"]+)"', shown)
    assert [name for _, name in links] == [f"digits-7-{k}.png" for k in range(3)]
    command = studio_draw.told(served.client.get(links[0][0]).content)["command"]
    assert command.startswith("fewstep sample digits -n 3 --seed 7 --label 3") and html.escape(command) in shown
    assert all(re.search('alt="[^"]+"', image) for image in re.findall("<img[^>]+>", shown))
    assert 'role="alert"' in studio_shown.status("<b>", wrong=True) and "&lt;b&gt;" in studio_shown.status("<b>")
    assert studio_shown.status("") == ""
    page = studio_shown.board(encoded(Image.new("L", (8, 8))), SHAPE)
    assert '<canvas width="8" height="8" tabindex="0"' in page
    assert opened(studio_shown.icon()).size == (32, 32)
    head = studio_shown.head("<x>", served.service.models._running["digits"].served.describe())
    assert "&lt;x&gt;" in head and "pictures of 8x8, 10 classes" in head


def test_failures_are_a_line():
    assert line(ValueError("two\nlines")) == ("two lines", True)
    assert line(Full(3, 2.0)) == ("the queue is full (3 samples wait): try again in about 2 s", True)
    assert line(RuntimeError("secret")) == ("the model failed (RuntimeError): the terminal says more", False)
    assert len(line(ValueError("x" * 900))[0]) == 400


def test_without_gradio_the_extra_is_named(monkeypatch):
    from fewstep.serving import studio

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'fewstep[studio]'")):
        studio.needed()
