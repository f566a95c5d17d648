"""Methods with options in one word."""

from __future__ import annotations

import pytest

from fewstep.cli.spec import read_option, read_spec


@pytest.mark.parametrize(
    "text, name, options",
    [
        ("cfg", "cfg", {}),
        ("cfg:scale=4,clamp", "cfg", {"scale": 4, "clamp": True}),
        ("apg:scale=6.5,momentum=-0.5,limit=none", "apg", {"scale": 6.5, "momentum": -0.5, "limit": None}),
        ("cfg:interval=0.2..5,clamp=no", "cfg", {"interval": (0.2, 5.0), "clamp": False}),
        ("slg:blocks=mid.attn+up.0", "slg", {"blocks": ["mid.attn", "up.0"]}),
        ("autoguidance:weak=runs/early,scale=2", "autoguidance", {"weak": "runs/early", "scale": 2}),
        ("fk:zero-steps=1e-3", "fk", {"zero_steps": 1e-3}),
    ],
)
def test_it_reads(text, name, options):
    assert read_spec(text, "--guide") == (name, options)


@pytest.mark.parametrize("text", ["", ":scale=2", "cfg:", "cfg:=2", "cfg:scale=", "cfg:scale=2,,clamp", "cfg:1=2"])
def test_it_does_not(text):
    with pytest.raises(ValueError, match="--guide takes METHOD:option=value,option=value, such as cfg:scale=4,clamp"):
        read_spec(text, "--guide")
    with pytest.raises(ValueError, match="gives scale twice"):
        read_spec("cfg:scale=2,scale=3", "--guide")


def test_an_option_of_its_own():
    assert read_option("scales=[1, 4]") == ("scales", [1, 4]) and read_option("on-start=yes") == ("on_start", "yes")
    for wrong in ("scales", "=2"):
        with pytest.raises(ValueError, match=f"--option takes NAME=VALUE, got '{wrong}'"):
            read_option(wrong)
