"""Model folders: exact, checked, and whole or absent."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.denoisers.folder import _fingerprint, load_model, save_model
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.denoisers.wrap import wrap
from fewstep.networks.unet import UNet
from fewstep.processes.discrete import Discrete
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


def small(process=None, **options) -> NetworkDenoiser:
    torch.manual_seed(0)
    network = UNet(channels=2, size=(4, 8), width=(8, 12), attention=(), classes=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    options = {
        "predicts": "v",
        "shape": (2, 4, 8),
        "conditions": {"label": Label(3)},
        "value_range": (0.0, 2.0),
    } | options
    return NetworkDenoiser(network, process or VP(beta_max=15.0), **options)


@pytest.fixture
def folder(tmp_path):
    return save_model(small(), tmp_path / "model", card="# A card\n")


@pytest.mark.parametrize(
    "process,options",
    [
        (VP(beta_max=15.0), {}),
        (Discrete.linear(steps=20), {"predicts": "x0", "precondition": "edm", "data_std": 0.37, "value_range": None}),
    ],
    ids=["v", "edm"],
)
def test_save_and_load_are_bit_equal(process, options, tmp_path):
    model = small(process, **options)
    made = plan(process, "dpmpp-2m", 3)
    path = save_model(model, tmp_path / "deep" / "model", card="# Mine\n", plan=made)
    assert sorted(p.name for p in path.iterdir()) == ["README.md", "config.json", "model.safetensors", "plan.json"]
    again = load_model(path)
    assert not again.training and again.plan == made and again.process == process
    for name in ("predicts", "precondition", "data_std", "shape", "value_range", "conditions", "data"):
        assert getattr(again, name) == getattr(model, name), name
    assert again.network.config() == model.network.config()
    weights, loaded = model.network.state_dict(), again.network.state_dict()
    assert weights.keys() == loaded.keys() and all(torch.equal(weights[k], loaded[k]) for k in weights)
    noise = torch.randn(3, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.plan(again, noise, label=2), made(model.eval(), noise, label=2))
    assert not torch.equal(again.plan(again, noise, label=1), again.plan(again, noise, label=2))


def test_a_folder_with_something_in_it_is_refused(folder, tmp_path):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ValueError, match="the folder .*model is not empty: choose another, or remove it first"):
        save_model(small(), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; name a folder that does not exist yet"):
        save_model(small(), tmp_path / "file")
    with pytest.raises(ValueError, match="cannot write to .*: .*file is not a folder"):
        save_model(small(), tmp_path / "file" / "inside")
    (tmp_path / "empty").mkdir()
    assert load_model(save_model(small(), tmp_path / "empty")).predicts == "v"


def test_only_what_is_ours_is_saved(tmp_path):
    with pytest.raises(ValueError, match="Wrapped cannot be saved: it is not made of fewstep's own networks"):
        save_model(wrap(lambda x, t: x, VP()), tmp_path / "model")
    with pytest.raises(ValueError, match=r"a network of class Linear cannot be saved: it has no config\(\)"):
        save_model(NetworkDenoiser(torch.nn.Linear(2, 2), VP()), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["os.replace", "os.fsync"])
@pytest.mark.parametrize("empty", [False, True])
def test_a_failed_write_leaves_nothing(name, empty, tmp_path, monkeypatch):
    if empty:
        (tmp_path / "model").mkdir()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(name, fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(small(), tmp_path / "model", plan=plan(VP(), "ddim", 2))
    monkeypatch.undo()
    assert [p for p in tmp_path.rglob("*") if p != tmp_path / "model"] == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"the model folder .* has no {name}"):
        load_model(folder)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(ValueError, match="nothing is not a model folder"):
        load_model(tmp_path / "nothing")


def test_truncated_and_tampered_weights(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for content in (whole[:-7], whole[:40], b"", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match="model.safetensors is truncated or changed: its checksum is not the one in config.json"
        ):
            load_model(folder)


class Danger:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_pickles_are_refused(kind, folder):
    path = folder / "model.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Danger()))
    else:
        torch.save({"a": Danger()}, path)
    with pytest.raises(
        ValueError, match="is a pickle, not safetensors: it is not loaded, because a pickle can run code"
    ):
        load_model(folder)
    path.rename(folder / "model.pt")
    with pytest.raises(ValueError, match="has no model.safetensors; model.pt is a pickle, which is never loaded"):
        load_model(folder)


def rewrite(folder, change) -> None:
    """Change the configuration as a program would that knows of its checksum."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    config["config_sha256"] = _fingerprint(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda c: c.pop("format"), "is not a fewstep model: format None, expected 'fewstep-model-2'"),
        (lambda c: c.pop("model"), "config.json has no 'model'"),
        (lambda c: c["model"].pop("name"), "config.json has no 'name'"),
        (lambda c: c["model"].update(name="netwerk"), "unknown denoiser 'netwerk': did you mean 'network'"),
        (lambda c: c["model"].update(kind="solver", name="ddim"), "the solver 'ddim' is no denoiser"),
        (lambda c: c["model"].update(predicts="epsilon"), "config.json: unknown prediction kind 'epsilon'"),
        (
            lambda c: c["model"]["process"].update(name="vpp"),
            "config.json: unknown process 'vpp': did you mean 'vp'",
        ),
        (lambda c: c["model"].update(process=[]), "process must be a process"),
        (lambda c: c["model"].update(network=None), "network must be a Module"),
        (lambda c: c["model"].update(conditions=["label"]), "config"),
        (lambda c: c["model"].pop("network"), "configuration do not fit"),
        (
            lambda c: c["model"]["network"].update(name="unett"),
            "config.json: unknown network 'unett': did you mean 'unet'",
        ),
        (
            lambda c: c["model"]["network"].update(width=[8, 16]),
            "the weights or the configuration do not fit the network",
        ),
        (lambda c: c["model"]["network"].update(depth=3), "config.json: .*depth"),
        (lambda c: c.update(weights_sha256="0" * 64), "truncated or changed"),
    ],
)
def test_a_changed_configuration(change, message, folder):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b'"x"'])
def test_a_configuration_that_is_none(content, folder):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json is not"):
        load_model(folder)


def test_a_configuration_changed_by_hand_is_refused(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"data_std": ', '"data_std": 1'))
    with pytest.raises(ValueError, match="config.json was changed by hand or damaged"):
        load_model(folder)


def test_the_networks_dtype_is_kept(folder, tmp_path):
    model = load_model(folder).to(torch.bfloat16)
    again = load_model(save_model(model, tmp_path / "half"))
    assert again.dtype == torch.bfloat16
    for key, value in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[key], value)


def test_foreign_weights_with_the_right_checksum(folder):
    import hashlib

    (folder / "model.safetensors").write_bytes(b"x" * 100)
    rewrite(folder, lambda c: c.update(weights_sha256=hashlib.sha256(b"x" * 100).hexdigest()))
    with pytest.raises(ValueError, match="model.safetensors is not safetensors"):
        load_model(folder)


def test_a_damaged_plan_is_named(folder):
    (folder / "plan.json").write_text('{"format": "fewstep-plan-1"')
    with pytest.raises(ValueError, match="plan.json: not a fewstep plan"):
        load_model(folder)


def test_weights_stored_in_half_load_in_single(tmp_path):
    network = UNet(1, 8, width=(8,), attention=(), classes=None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model = NetworkDenoiser(network, EDM(), "x0", (1, 8, 8), precondition="edm").eval()
    whole, half = (save_model(model, tmp_path / name, stored=d) for name, d in (("a", None), ("b", torch.float16)))
    sizes = [(path / "model.safetensors").stat().st_size for path in (whole, half)]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    again = load_model(half)
    assert again.dtype == torch.float32
    for name, value in again.network.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name].half().float(), rtol=0, atol=0)
