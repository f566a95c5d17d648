"""Operators in words, and back."""

from __future__ import annotations

import pytest
import torch

from fewstep.operators.mask import Inpaint
from fewstep.operators.spec import read_operator

X = torch.randn(2, 1, 4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "text",
    [
        "identity",
        "downsample:2,filter=average",
        "blur:gaussian,width=1,border=cyclic",
        "blur:motion,length=5,angle=30,border=reflect",
        "inpaint:half",
        "inpaint:random,share=0.25,seed=3",
        "sensing:16,rows=orthonormal,seed=0",
        "grey:0.5+",
        "projections:6",
        "projections:0+22.5",
        "0.5 downsample:2,filter=stride",
        "-2 (0.1 identity + blur:box,border=cyclic)",
        "identity + blur:disk,width=3.5,border=cyclic",
        "downsample:2,filter=average @ blur:gaussian,border=cyclic @ inpaint:box",
        "(identity + 2 identity) @ inpaint:box",
        "stack(inpaint:half, downsample:2,filter=stride @ blur:box,border=cyclic)",
        "magnitude:2",
        "magnitude(blur:box,border=cyclic)",
        "clip:-0.5,high=0.5",
    ],
)
def test_what_is_written_reads_again(text: str):
    operator = read_operator(text)
    assert str(operator) == text
    assert torch.equal(read_operator(str(operator))(X), operator(X))


def test_short_spellings():
    assert str(read_operator("downsample:2")) == "downsample:2,filter=average"
    assert str(read_operator("blur:width=2")) == "blur:gaussian,width=2,border=cyclic"
    assert str(read_operator("jpeg:30,halved=no")) == "jpeg:30,halved=no,low=-1,high=1"


def test_of_several_the_first_acts_first():
    both = read_operator(["inpaint:half", "downsample:2"])
    assert str(both) == "downsample:2,filter=average @ inpaint:half"
    assert str(read_operator(["clip", "downsample:2"])) == "downsample:2,filter=average @ clip:-0.5,high=0.5"


@pytest.mark.parametrize(
    "text", ["", "blur:", ":2", "blur:gaussian,=2", "identity +  + identity", "(identity", "identity)", "stack()"]
)
def test_what_is_none(text: str):
    with pytest.raises(
        ValueError, match="--operator takes NAME:value,option=value, such as blur:gaussian,width=1, got"
    ):
        read_operator(text, "--operator")


def test_bad_input():
    with pytest.raises(ValueError, match="unknown operator 'blurr': did you mean 'blur'"):
        read_operator("blurr:gaussian")
    with pytest.raises(ValueError, match="unknown option of the operator 'blur' 'widht': did you mean 'width'"):
        read_operator("blur:gaussian,widht=2")
    with pytest.raises(ValueError, match="gives kernel twice"):
        read_operator("blur:gaussian,kernel=box")
    with pytest.raises(ValueError, match="gives width twice"):
        read_operator("blur:width=2,width=3")
    with pytest.raises(ValueError, match="factor of the operator 'downsample' must be a whole number, got 'two'"):
        read_operator("downsample:two")
    with pytest.raises(ValueError, match="the operator 'downsample' needs factor="):
        read_operator("downsample")
    with pytest.raises(ValueError, match="the operator 'identity' has no options, got '3'"):
        read_operator("identity:3")
    with pytest.raises(ValueError, match="the operator 'blur' is not made of others"):
        read_operator("blur(identity)")
    with pytest.raises(ValueError, match="<5x7> is what an array of that shape is called: give it in Python"):
        read_operator(str(Inpaint(torch.ones(5, 7))))
    with pytest.raises(ValueError, match="takes NAME:value.*got none"):
        read_operator([])
