"""The search for guidance, on two Gaussians whose guided variance is known."""

from __future__ import annotations

import json

import pytest
import torch
from scaled import Scaled

import fewstep as fs
from fewstep.searching.guidance import PLAIN, FoundGuidance, search_guidance


def narrow(x: torch.Tensor, **condition: object) -> torch.Tensor:
    """Best where numbers are within +-0.5: a scale above 1 narrows the law, the more the larger it is."""
    return -(x.abs() - 0.5).clamp_min(0).square().mean(1)


def found(**options) -> FoundGuidance:
    settings = {"trials": 4, "noises": 16, "solver": "ddim"} | options
    return search_guidance(Scaled(), 6, narrow, **settings)


def test_it_finds_what_the_reward_wants_and_is_never_worse_than_plain_guidance():
    made = found()
    assert isinstance(made, FoundGuidance) and made.finished and made.plan.nfe == 6
    rows = {row["role"]: row["reward"] for row in made.rows}
    assert rows.get("plain", -1e9) <= rows["searched"] + 1e-12 or made.method != "cfg"
    assert made.options["scale"] > 3 and made.rows[0]["reward"] > -0.2
    assert made.history[0][0] == 0 and [value for _, value in made.history] == sorted(v for _, v in made.history)
    # The model is the one that the words make.
    noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(5))
    again = fs.guide(Scaled(), made.method, **made.options)
    assert torch.equal(made.plan(made.model, noise, label=0), made.plan(again, noise, label=0))
    assert made.spec.startswith(f"{made.method}:scale={made.options['scale']}")


def test_a_search_goes_on_where_it_stopped(tmp_path):
    whole = found(folder=tmp_path / "whole")
    stopped = found(folder=tmp_path / "parts", seconds=1e-9)
    assert not stopped.finished and len(json.loads((tmp_path / "parts" / "guidance.json").read_text())["trials"]) == 1
    again = found(folder=tmp_path / "parts")
    assert again.finished and (again.method, again.options) == (whole.method, whole.options)
    texts = [(tmp_path / name / "guidance.json").read_text() for name in ("whole", "parts")]
    assert texts[0] == texts[1] and len(json.loads(texts[0])["trials"]) == len(PLAIN) + 4
    with pytest.raises(ValueError, match="holds another search"):
        found(folder=tmp_path / "parts", seed=1)


def test_it_is_found_by_search_and_says_what_is_wrong():
    made = fs.search(Scaled(), 4, "guidance", reward=narrow, trials=0, noises=16)
    assert made.method == "cfg" and made.options["scale"] in PLAIN
    for options, message in (
        ({"noises": 4}, "noises must be a whole number of at least 8"),
        ({"reward": lambda x, **named: x}, r"one number for each sample, shape \(16,\), got shape \(16, 3\)"),
        ({"reward": "capton"}, "did you mean 'caption'"),
    ):
        settings = {"reward": narrow, "trials": 0, "noises": 16, "solver": "ddim"} | options
        with pytest.raises(ValueError, match=message):
            search_guidance(Scaled(), 4, **settings)
