"""Caches on the command line: found for an error, and by name."""

from __future__ import annotations

import json

import pytest


def test_a_cache_for_an_error(fewstep, folder):
    words = ("cache", folder, "--steps", 12, "--solver", "ddim", "--error", 0.2, "--out", "cached")
    code, out, _ = fewstep(*words)
    assert code == 0 and out.splitlines()[0].split()[-1] == "whole"
    assert "fresh samples deviate by" in out and "% sure: 9 of 10 fresh samples within" in out
    assert "steps of the same solver deviate by" in out
    facts = json.loads(fewstep("sample", "cached/", "-n", 2, "--json")[1])
    assert facts["solver"] == "ddim" and facts["planned_nfe"] == 12
    code, _, err = fewstep("sample", "cached/", "-n", 2, "--steps", 5, "--force")
    assert code == 2 and "this cache was calibrated for ddim, 12 evaluations" in err


@pytest.mark.slow  # the same figures as above
def test_json(fewstep, folder):
    out = json.loads(fewstep("cache", folder, "--steps", 10, "--solver", "ddim", "--error", 0.2, "--json")[1])
    assert len(out["schedule"]) == 10 and out["figures"]["evaluations"] == 10 and "sure" in out["bound"]


def test_a_cache_by_name(fewstep, folder):
    words = ["sample", folder, "--label", "3", "-n", "2", "--steps", "12", "--out", "threes.png", "--force"]
    code, out, _ = fewstep(*words, "--cache", "deepcache:interval=2,order=2", "--json")
    assert code == 0 and json.loads(out)["cache"] == "deepcache:interval=2,order=2"
    for given, message in (
        ("depcache", "did you mean 'deepcache'"),
        ("deepcache:intervall=2", "did you mean 'interval'"),
        ("deepcache:interval=0", "interval must be a whole number of at least 1"),
        ("deepcache:", "--cache takes METHOD"),
    ):
        code, _, err = fewstep(*words, "--cache", given)
        assert code == 2 and message in err, err


def test_bad_input(fewstep, folder):
    for given, message in (
        (["--error", "0"], "error must be above 0"),
        (["--error", "0.1", "--measure", "macs"], "measure is 'flops' or 'seconds'"),
        ([], "--error"),
    ):
        code, _, err = fewstep("cache", folder, "--steps", "10", *given)
        assert code == 2 and message in err, err
