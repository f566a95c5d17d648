"""Compressed pictures: one call each way, and files that are refused by name where they cannot be read."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from restoration.problems import D, half, mixture, normal

import fewstep as fs
from fewstep.core.noise import VERSION
from fewstep.data.open import open_built_in
from fewstep.operators.nonlinear import Clip
from fewstep.processes.flow import Flow
from fewstep.restoration.codec import HEAD, Compressed, batches


@pytest.fixture(scope="module")
def model():
    return mixture()


@pytest.fixture(scope="module")
def small(model):
    return fs.encode(model, model.sample(5, seed=1), options={"entries": 16, "nfe": 3})


@pytest.mark.parametrize(
    "method, options", [("ddcm", {"entries": 64, "nfe": 12, "seed": 5}), ("relic", {"step": 0.5, "nfe": 2})]
)
def test_a_file_gives_what_it_was_made_of(model, method, options, tmp_path):
    x = model.sample(6, seed=2).float()
    made = fs.encode(model, x, method, options=options)
    path = made.save(tmp_path / "x.fsc")
    assert os.listdir(tmp_path) == ["x.fsc"]  # under another name, and renamed
    assert Compressed.load(path) == made and made.pictures == 6 and made.bits == 8 * len(made.payload)
    assert len(path.read_bytes()) - len(made.payload) < 160
    found = fs.decode(model, path)
    assert torch.equal(found, fs.decode(model, made)) and found.shape == x.shape
    assert float((found - x).square().mean()) < 0.5 * float(x.var())


def test_a_measurement_is_restored_from_its_bits(model):
    x, a = model.sample(50, seed=3).float(), half()
    made = fs.encode(model, a.measure(x), "ddcm", operator=a)
    assert float((a(fs.decode(model, made)) - a(x)).square().mean()) < 0.1 * float(a(x).var())


def test_conditions_go_into_the_file(tmp_path):
    model = fs.load("digits")
    data = open_built_in("digits", split="validation")
    x, labels = data.images[:3], data.labels[:3]
    made = fs.encode(model, x, options={"nfe": 4}, label=labels, batch_size=2)
    assert made.condition == {"label": labels.tolist()}
    path = made.save(tmp_path / "x.fsc")
    assert torch.equal(fs.decode(model, path, batch_size=2), fs.decode(model, made, batch_size=2))
    assert fs.encode(model, x, options={"nfe": 4}).payload != made.payload
    rows = [(part, named["label"].tolist()) for part, named in batches(model, 3, made.condition, 2)]
    assert rows == [(slice(0, 2), labels[:2].tolist()), (slice(2, 3), labels[2:].tolist())]


def refused(data, path, model, message):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{path} {message}"):
        fs.decode(model, path)


def test_files_that_cannot_be_read_are_refused_by_name(model, small, tmp_path):
    path, data = tmp_path / "x.fsc", small.to_bytes()
    for other in (b"", b"\x89PNG\r\n", b"fsd" + data[3:]):
        refused(other, path, model, "holds no compressed pictures: 'fewstep encode' and fs.encode make such")
    for left in (2, HEAD.size - 1):
        refused(data[:left], path, model, f"was cut short: {left} bytes are not even its head")
    for left in (HEAD.size, len(data) - 1):
        refused(data[:left], path, model, f"was cut short: it has {left} of {len(data)} bytes")
    refused(data[:4] + b"\x07" + data[5:], path, model, "is of version 7 of its format, and version 1 is read here")
    for place in (HEAD.size - 1, HEAD.size, HEAD.size + 30, len(data) - 1):  # the checksum, model, words and bits
        changed = bytearray(data)
        changed[place] ^= 4
        refused(bytes(changed), path, model, "was damaged: it does not have the checksum that it states")
    refused(data + b"\0", path, model, "was damaged")
    with pytest.raises(ValueError, match="gone.fsc cannot be read: No such file"):
        fs.decode(model, tmp_path / "gone.fsc")


def test_another_model_or_other_noise_is_refused(model, small, tmp_path):
    path = small.save(tmp_path / "x.fsc")
    for other in (mixture(Flow()), fs.load("digits")):
        with pytest.raises(ValueError, match=f"{path} was compressed with another model \\({small.model}\\) than this"):
            fs.decode(other, path)
        with pytest.raises(ValueError, match="^this was compressed with another model"):
            fs.decode(other, small)
    with pytest.raises(ValueError, match=f"this is of version {VERSION - 1} of the noise of a seed"):
        fs.decode(model, replace(small, noise=VERSION - 1))


def test_bad_input_is_said(model):
    x = normal(2, D).float()
    with pytest.raises(ValueError, match="unknown codec 'dccm': did you mean 'ddcm'"):
        fs.encode(model, x, "dccm")
    with pytest.raises(ValueError, match="unknown option of the codec 'ddcm' 'entry': did you mean 'entries'"):
        fs.encode(model, x, options={"entry": 3})
    with pytest.raises(ValueError, match=r"pictures must have shape \(6\) or \(B, 6\), got \(2, 5\)"):
        fs.encode(model, x[:, :5])
    with pytest.raises(ValueError, match="there are no pictures to compress"):
        fs.encode(model, x[:0])
    with pytest.raises(ValueError, match="pictures has values that are not finite"):
        fs.encode(model, x / 0)
    with pytest.raises(ValueError, match="'relic' compresses pictures as they are: 'ddcm' takes an operator"):
        fs.encode(model, x, "relic", operator=half())
    with pytest.raises(ValueError, match="'ddcm' takes a linear operator, and clip"):
        fs.encode(model, x, operator=Clip())
    with pytest.raises(ValueError, match=r"pictures of shape \(2, 5\) is no measurement of inpaint"):
        fs.encode(model, x[:, :5], operator=half())
    with pytest.raises(ValueError, match="conditions that go into a file are numbers or text"):
        fs.encode(model, x, label={1, 2})
    with pytest.raises(ValueError, match="this model takes any shape: a codec needs one that is known"):
        fs.encode(fs.wrap(lambda x, t: x, Flow(), "x0"), x)
