"""The files of adapters: what comes back, what they make of a model, and what is refused."""

from __future__ import annotations

import pytest
import torch
from training.adapted import answer, denoiser, disturbed

from fewstep.core.student import Student
from fewstep.training.adapter_files import STUDENTS, adapter_file, load_lora, read_factors, save_lora
from fewstep.training.lora import add_lora, lora_parameters, set_scale

pytest.importorskip("peft")


def test_a_file_brings_the_adapter_back(tmp_path):
    model = denoiser()
    made = disturbed(model)
    path = save_lora(made, tmp_path / "adapter.safetensors")
    assert torch.equal(answer(load_lora(model, path)), answer(made))
    set_scale(made, 0.25)
    assert torch.equal(answer(load_lora(model, path, 0.25)), answer(made))
    part = add_lora(model, 2, ["mid"])
    assert len(lora_parameters(load_lora(model, save_lora(part, path)))) == len(lora_parameters(part))


def test_a_file_for_another_network_is_refused(tmp_path):
    path = save_lora(disturbed(denoiser()), tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match=r"another network.*width \[8, 12\], not \[16, 12\]"):
        load_lora(denoiser(width=16), path)
    with pytest.raises(ValueError, match="another network"):
        load_lora(denoiser("dit"), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="no fewstep adapter"):
        load_lora(denoiser(), path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="no fewstep adapter"):
        load_lora(denoiser(), path)


def test_a_students_adapter_says_what_it_makes_of_the_network(tmp_path):
    model = denoiser()
    made = disturbed(model)
    made.student = Student("jump", "lcm", "digits", 3.0, (3.0, 1.0), None, 12, 400.0)
    (tmp_path / "run" / "model").mkdir(parents=True)
    path = save_lora(made, tmp_path / "run" / "model" / STUDENTS)
    model.plan = "some plan of its own"
    for given in (path, path.parent, tmp_path / "run"):
        assert adapter_file(given) == path
        back = load_lora(model, given)
        assert back.student == made.student and back.plan is None and torch.equal(answer(back), answer(made))
    assert read_factors(model, path).keys() == {name.rpartition(".")[0] for name in _keys(made)}


def _keys(model):
    return {name.removesuffix(".default.weight") for name, _ in model.network.named_parameters() if "lora_A" in name}


def test_what_is_no_adapter_for_a_network_is_refused(tmp_path):
    model = denoiser()
    with pytest.raises(ValueError, match="the folder .* holds no adapter"):
        adapter_file(tmp_path)
    with pytest.raises(ValueError, match="cannot read the adapter .*: No such file"):
        load_lora(model, tmp_path / "none")


def test_a_file_is_of_the_rank_that_it_says(tmp_path):
    path = save_lora(disturbed(denoiser(), 3), tmp_path / "adapter.safetensors")
    path.write_bytes(path.read_bytes().replace(b'\\"rank\\": 3', b'\\"rank\\": 4'))
    for read in (load_lora, read_factors):
        with pytest.raises(ValueError, match=r"says that it is of rank 4, and .*\.[AB] is of 3"):
            read(denoiser(), path)
