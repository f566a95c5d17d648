"""Wrong kinds of arguments end in a sentence that names the argument: for every public function, and in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.core.arguments import check_kind, check_whole, fits, shown, wanted
from fewstep.processes.vp import VP

FUNCTIONS = sorted(
    name for name in fs.__all__ if inspect.isfunction(getattr(fs, name)) and hasattr(getattr(fs, name), "__wrapped__")
)


class Odd:
    """What no function takes."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_argument_of_each_public_function_is_named(name):
    function = getattr(fs, name)
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    free = {"init", "picture"}  # pictures of any kind, which are checked when they are read
    refused = 0
    for argument in named:
        if argument in free:
            continue
        with pytest.raises(ValueError, match=rf"^{argument} must be .*, got an Odd$"):
            function(**{argument: Odd()})
        refused += 1
    assert refused >= 1


def test_every_public_function_is_checked():
    plain = {name for name in fs.__all__ if inspect.isfunction(getattr(fs, name))} - set(FUNCTIONS)
    assert plain == {"find", "methods"} and len(FUNCTIONS) >= 20


MODEL: dict[str, Any] = {}


def model() -> Any:
    if not MODEL:
        MODEL["it"] = fs.wrap(lambda x, t: 0.3 * x, VP(), "x0", (1, 4, 4))
    return MODEL["it"]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fs.sample("digits", 1), "model must be a denoiser, as fs.load gives, got 'digits'"),
        (lambda: fs.sample(model(), 1.0), "n must be a whole number, got 1.0"),
        (lambda: fs.sample(model(), -2), "n must be a whole number of at least 1, got -2"),
        (lambda: fs.sample(model(), 1, steps=2.0), "steps must be a whole number, got 2.0"),
        (lambda: fs.sample(model(), 1, plan="plan.json"), "plan must be a plan, as fs.plan makes, got 'plan.json'"),
        (lambda: fs.sample(model(), 1, dtype="float32"), "dtype must be a torch dtype such as torch.float32"),
        (lambda: fs.sample(model(), 1, seeds=[(1, 2, 3)]), r"seeds\[0\] must be a whole number or 2 whole numbers"),
        (lambda: fs.sample(model(), 1, solver="dimm"), "unknown solver 'dimm': did you mean 'ddim'"),
        (lambda: fs.sample(model(), 1, init=3, strength=0.5), "init must be a tensor, an array, a Pillow picture"),
        (lambda: fs.plan(model(), "ddim", 2), "process must be a process, as model.process is, got a Wrapped"),
        (lambda: fs.plan(VP(), "unipc", 2, order="a"), "order of the solver 'unipc' must be a whole number, got 'a'"),
        (lambda: fs.guide(model(), "known", picture=None, mask=0), "picture must be a tensor"),
        (lambda: fs.load(None), "name must be a text, a path or a diffusers pipeline, got None"),
        (lambda: fs.load("digits", "gpu"), "device must be a device such as 'cpu' or 'cuda:0', got 'gpu'"),
        (lambda: fs.load("digits", dtype=torch.int8), "dtype must be a floating one"),
        (lambda: fs.run_mixed([("ddim", torch.zeros(1, 2))], model()), r"requests\[0\]\[0\] must be a plan"),
        (lambda: fs.Plan.load("gone.json"), "gone.json cannot be read: No such file"),
        (lambda: fs.Plan.load(3), "path must be a text or a path, got 3"),
        (lambda: fs.train("gone.toml", "out"), "cannot read the recipe 'gone.toml': No such file"),
        (lambda: fs.train(3, "out"), "recipe must be a Recipe, a text or a path, got 3"),
        (lambda: fs.evaluate(model(), "ddim"), "plan must be a plan, as fs.plan makes, got 'ddim'"),
        (lambda: fs.compare(model(), "8"), "nfes must be a list of whole numbers, got '8'"),
        (lambda: fs.Label(2.5), "classes must be a whole number of at least 1, got 2.5"),
        (lambda: fs.Picture(3), "shape must be a list of whole numbers, got 3"),
        (lambda: fs.Text("a cat", 3), "vocabulary must be a list of texts, got 'a cat'"),
        (lambda: fs.Number("a"), "low must be a number, got 'a'"),
        (lambda: fs.NetworkDenoiser("unet", VP()), "network must be a Module, got 'unet'"),
        (lambda: fs.plan(VP(), "ddim", 2)("digits", torch.zeros(1, 2)), "model must be a denoiser"),
        (lambda: fs.plan(VP(), "ddim", 2)(model(), [1, 2]), "noise must be a float tensor"),
    ],
)
def test_what_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_fits():
    yes = [
        (3, int), (np.int64(3), int), (3, float), (np.float32(2), float), (torch.tensor(2.0), float), (True, bool),
        ("a", str | None), (None, str | None), ([1, 2.5], Sequence[float]), (np.zeros(3), Sequence[float]),
        ((1, 2), tuple[int, int]), ([1, 2], tuple[int, int]), (len, Callable[..., Any]), ({}, Mapping[str, Any]),
        ("x", Path), ("cuda:0", torch.device | str), ("a", Literal["a", "b"]), (Odd(), Any), (Odd(), "unknown"),
    ]  # fmt: skip
    no = [
        (True, int), (1.0, int), ("1", int), (torch.zeros(2), int), (True, float), ("1", float), (1, bool), (1, str),
        ("ab", Sequence[str]), ([1, "a"], Sequence[float]), ([1], tuple[int, int]), (3, Callable[..., Any]),
        ([], Mapping[str, Any]), (3, Path), ("gpu", torch.device | str), ("c", Literal["a", "b"]), ([1], Tensor),
    ]  # fmt: skip
    assert [fits(*one) for one in yes] == [True] * len(yes) and [fits(*one) for one in no] == [False] * len(no)


def test_words():
    assert wanted(int | Sequence[int] | None) == "a whole number or a list of whole numbers"
    assert wanted(str | Tensor | Callable[..., int]) == "a text, a tensor or a function"
    assert shown(torch.zeros(2, 3)) == "a tensor of shape (2, 3)" and shown("x" * 100) == "a str"
    assert check_whole("n", np.int32(4)) == 4
    with pytest.raises(ValueError, match="n must be a whole number from 1 to 8, got 9"):
        check_whole("n", 9, most=8)
    with pytest.raises(ValueError, match=r"sizes\[1\] must be a whole number, got 'b'"):
        check_kind("sizes", [1, "b"], list[int] | None)
