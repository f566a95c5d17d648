"""The command line as a whole: what it loads, how it fails, how it is interrupted."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fewstep as package
from fewstep.cli import main

COMMANDS = ("demo", "sample", "train", "accelerate", "evaluate", "methods", "info")


def shell(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fewstep", *words], capture_output=True, text=True)


def test_help_loads_neither_torch_nor_rich():
    code = (
        "import sys; from fewstep.cli.main import run; code = run(['--help']);"
        "print(sorted({'torch', 'numpy', 'rich', 'sklearn', 'PIL'} & set(sys.modules)), code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
    for command in COMMANDS:
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example_and_its_options(fewstep, command):
    code, out, _ = fewstep(command, "--help")
    assert code == 0 and "Example:" in out and f"fewstep {command}" in out and "--json" in out
    if command not in ("methods", "info"):
        assert "--seed" in out and "--device" in out


def test_without_a_command_it_helps(fewstep):
    code, out, err = fewstep()
    assert code == 0 and "Commands:" in out and err == ""


def test_the_module_runs_and_errors_are_one_line_with_code_2(fewstep):
    done = shell("--version")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, package.__version__, "")
    code, out, err = fewstep("sampel")
    assert code == 2 and out == "" and "No such command 'sampel'" in err and len(err.splitlines()) == 1
    done = shell("info", "digitz")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "fewstep: unknown model 'digitz': did you mean 'digits' or 'digits-1' or 'digits-dit'?\n"


@pytest.mark.parametrize(
    "words", [("info", "digitz", "--debug"), pytest.param(("--debug", "info", "digitz"), marks=pytest.mark.slow)]
)
def test_debug_gives_the_traceback_wherever_it_stands(words):
    done = shell(*words)
    assert done.returncode != 0 and "Traceback" in done.stderr and "ValueError: unknown model" in done.stderr


def test_unknown_options_and_values(fails):
    assert "No such option: --stepz" in fails("sample", "digits", "--stepz", "3")
    assert "--steps" in fails("sample", "digits", "--steps", "many")
    assert "Give a recipe" in fails("train", "--out", "x")


def test_ctrl_c_is_a_line_and_130(fewstep, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fewstep.cli.common.open_model", interrupted)
    code, out, err = fewstep("sample", "digits")
    assert code == 130 and out == "" and err.splitlines()[-1] == "fewstep: interrupted"


def test_an_error_nobody_foresaw_is_one_line_too(fails, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("fewstep.cli.common.open_model", broken)
    assert fails("sample", "digits") == "RuntimeError: out of memory (--debug shows where)"
    with pytest.raises(RuntimeError):
        main.run(["sample", "digits"], debug=True)


def test_device(fails, folder):
    assert fails("sample", folder, "--device", "gpu") == "unknown device 'gpu': use 'cpu', 'cuda' or 'cuda:0'"
    assert "torch sees" in fails("sample", folder, "--device", "cuda:99")
