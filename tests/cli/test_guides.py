"""Guidance, steering and their search on the command line."""

from __future__ import annotations

import json


def test_sampling_under_methods(fewstep, folder, tmp_path):
    words = ["sample", folder, "--label", "3", "-n", "2", "--nfe", "2", "--out", "threes.png"]
    code, out, _ = fewstep(*words, "--guide", "cfg:scale=2,interval=0.5..80", "--json")
    assert code == 0 and json.loads(out)["guide"] == ["cfg:scale=2,interval=0.5..80"]
    for given, message in (
        (["--guide", "cgf"], "did you mean 'cfg'"),
        (["--guide", "cfg:scal=2"], "did you mean 'scale'"),
        (["--guide", "cfg:scale=2,"], "--guide takes METHOD"),
        (["--negative", "blurry"], "give --guidance or --guide cfg as well"),
        (["--negative", "blurry", "--guide", "cfg"], "reads no captions"),
    ):
        code, _, err = fewstep(*words, "--force", *given)
        assert code == 2 and message in err, err


def test_sampling_steered_by_particles(fewstep, folder):
    words = ["sample", folder, "-n", "2", "--nfe", "3", "--out", "steered.png", "--force"]
    code, out, _ = fewstep(*words, "--steer", "fk:particles=3,strength=5", "--reward", "digit=4", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["reward"] == "digit=4" and facts["solver"].endswith(", fk")
    code, _, _ = fewstep(*words, "--steer", "fk:particles=2", "--reward", "ink", "--solver", "ddpm")
    assert code == 0
    for given, message in (
        (["--reward", "ink"], "give --steer fk as well"),
        (["--steer", "fk", "--reward", "inc"], "did you mean 'ink'"),
        (["--steer", "fk", "--reward", "ink=3"], "--reward takes NAME or NAME=VALUE"),
        (["--steer", "kf", "--reward", "ink"], "did you mean 'fk'"),
        (["--steer", "fk", "--reward", "ink", "--solver", "ddim"], "needs noise"),
    ):
        code, _, err = fewstep(*words, *given)
        assert code == 2 and message in err, err


def test_a_search_for_guidance_says_how_to_take_it(fewstep, folder):
    words = ["search", folder, "--nfe", "2", "--method", "guidance", "--noises", "8", "--option", "trials=1"]
    code, out, _ = fewstep(*words, "--reward", "digit", "--out", "found", "--json")
    result = json.loads(out)
    assert code == 0 and result["finished"] and result["rows"][0]["reward"] <= 0
    code, _, err = fewstep("sample", folder, "-n", "1", "--nfe", "2", "--label", "2", "--guide", result["guide"])
    assert code == 0, err
    code, out, _ = fewstep(*words, "--reward", "digit", "--out", "found")
    assert code == 0 and f"--guide {result['guide']}" in out  # taken up where it ended
    for given, message in (
        ([], "--method guidance needs --reward"),
        (["--reward", "digit", "--guidance", "2"], "--method guidance finds the guidance"),
        (["--reward", "digit", "--method", "gits"], "--reward goes with --method guidance"),
    ):
        code, _, err = fewstep(*words, *given)
        assert code == 2 and message in err, err
