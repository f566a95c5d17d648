"""`fewstep methods` and `fewstep info`."""

from __future__ import annotations

import json

from PIL import Image

import fewstep as fs


def test_methods_by_word_and_room(fewstep, fails):
    code, out, _ = fewstep("methods", "dpmpp")
    lines = dict(line.split("\t", 1) for line in out.splitlines())
    assert code == 0 and "dpmpp-2m" in lines and "heun" not in lines
    assert lines["dpmpp-2m"].endswith("fewstep/sampling/dpmpp.py")
    cards = json.loads(fewstep("methods", "--room", "timesteps", "--json")[1])
    assert {card["room"] for card in cards} == {"timesteps"} and "karras" in {card["name"] for card in cards}
    assert len(json.loads(fewstep("methods", "--json")[1])) == len(fs.methods())
    assert "'sampling'" in fails("methods", "--room", "sampler")
    assert "no method has 'xyzzy'" in fails("methods", "xyzzy")


def test_methods_of_distillation_by_what_they_need(fewstep):
    code, out, _ = fewstep("methods", "--room", "distillation")
    rows = {name: rest for name, *rest in (line.split("\t") for line in out.splitlines())}
    assert code == 0 and len(rows) == len(fs.methods("distiller"))
    kd, dmd2, ctm = rows["kd"], rows["dmd2"], rows["ctm"]
    assert kd[:3] == ["no", "yes", "jump"] and dmd2[:3] == ["yes", "no", "jump"] and ctm[:3] == ["no", "yes", "map"]
    cards = {card["name"]: card for card in json.loads(fewstep("methods", "--room", "distillation", "--json")[1])}
    assert (cards["ict"]["data"], cards["ict"]["pairing"], cards["ict"]["student"]) == (True, False, "jump")
    assert cards["kd"]["claim"] == kd[3]
    assert "data" not in json.loads(fewstep("methods", "karras", "--json")[1])[0]


def test_a_model(fewstep, folder, tmp_path):
    code, out, _ = fewstep("info", folder, "--json")
    facts, model = json.loads(out), fs.load(folder)
    assert code == 0 and facts["network"] == "unet" and facts["process"]["process"] == "edm"
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["conditions"] == {"label": {"kind": "label", "classes": 10}} and "plan" not in facts
    plan = fs.plan(model.process, "ddim", steps=3)
    fs.save(model, tmp_path / "fast", plan=plan)
    assert json.loads(fewstep("info", "fast/", "--json")[1])["plan"]["nfe"] == 3
    text = fewstep("info", "fast/")[1]
    assert text.endswith(str(plan) + "\n") and "parameters" in text


def test_a_plan(fewstep, fails, tmp_path):
    plan = fs.plan(fs.load("digits").process, "unipc-2", steps=4, timesteps="karras")
    plan.save(tmp_path / "plan.json")
    code, out, _ = fewstep("info", "plan.json", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["nfe"] == 4 and facts["times"] == list(plan.times)
    assert str(plan) in fewstep("info", "plan.json")[1]
    (tmp_path / "other.json").write_text("[]")
    assert "other.json: not a fewstep plan" in fails("info", "other.json")
    assert fails("info", "none.json") == "there is no file none.json"


def test_pictures_that_say_nothing(fails, tmp_path):
    Image.new("L", (3, 5)).save(tmp_path / "plain.png")
    assert "plain.png holds no parameters" in fails("info", "plain.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "plain.png").read_bytes()[:40])
    assert "broken.png cannot be read as a picture" in fails("info", "broken.png")
    assert fails("info", "none.png") == "there is no file none.png"


def test_no_model(fails):
    assert fails("info", "digitz") == "unknown model 'digitz': did you mean 'digits' or 'digits-1' or 'digits-dit'?"
