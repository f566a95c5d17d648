"""Uploads, against a hub that only takes notes: no network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.hub.models import save
from fewstep.hub.push import push_to_hub
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.sampling.build import plan

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return NetworkDenoiser(MLP((2, 3), classes=4, width=8, depth=1), Flow(), "velocity", (2, 3), {"label": Label(4)})


@pytest.fixture
def notes(monkeypatch):
    """What was asked of the hub; `notes["fails"]` is raised by the next call."""
    found = {}

    class Api:
        def __init__(self, token=None):
            found["token"] = token

        def create_repo(self, repo_id, **options):
            if "fails" in found:
                raise found["fails"]
            found["repo"] = (repo_id, options)

        def upload_folder(self, *, repo_id, folder_path, **options):
            files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            found["upload"] = (repo_id, files, options)

            class Commit:
                commit_url = f"https://huggingface.co/{repo_id}/commit/1"

            return Commit()

    monkeypatch.setattr(hub, "HfApi", Api)
    return found


def test_a_model(model, notes):
    made = plan(model.process, "ddim", 2)
    address = push_to_hub(model, "me/mine", private=True, token="secret", plan=made)
    assert address == "https://huggingface.co/me/mine/commit/1"
    assert notes["token"] == "secret"
    assert notes["repo"] == ("me/mine", {"private": True, "exist_ok": True, "repo_type": "model"})
    name, files, options = notes["upload"]
    assert name == "me/mine" and options["repo_type"] == "model"
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "plan.json"]
    assert b'fs.load("me/mine", download=True)' in files["README.md"]


def test_a_folder_as_it_stands(model, notes, tmp_path):
    folder = save(model, tmp_path / "mine", card="# Own\n")
    push_to_hub(folder, "me/mine")
    assert notes["upload"][1]["README.md"] == b"# Own\n" and notes["repo"][1]["private"] is None
    with pytest.raises(ValueError, match="a folder holds its plan and card already"):
        push_to_hub(folder, "me/mine", plan=plan(model.process, "ddim", 2))
    (folder / "weights.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds weights.bin, a pickle"):
        push_to_hub(folder, "me/mine")
    with pytest.raises(ValueError, match="is not a model folder"):
        push_to_hub(tmp_path, "me/mine")


@pytest.mark.parametrize(
    "name,message", [("mine", "with its owner, owner/mine"), ("me/my model", "is no repository's name")]
)
def test_names(name, message, model, notes):
    with pytest.raises(ValueError, match=message):
        push_to_hub(model, name)
    assert "upload" not in notes


def refused(status):
    """The hub's error without the HTTP library that it is made of."""
    error = hub.errors.HfHubHTTPError.__new__(hub.errors.HfHubHTTPError, "no")
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    "error,message",
    [
        (lambda: hub.errors.LocalTokenNotFoundError("none"), "there is no login for the hub: run `hf auth login`"),
        (lambda: refused(401), r"the hub refused 'me/mine' \(401\): log in"),
        (lambda: refused(403), r"the hub refused 'me/mine' \(403\)"),
        (lambda: refused(500), "the hub did not take 'me/mine'"),
        (lambda: hub.errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (lambda: ConnectionError("unreachable"), "could not be uploaded, is there a network"),
    ],
)
def test_no_login_and_no_network(error, message, model, notes):
    notes["fails"] = error()
    with pytest.raises(ValueError, match=message):
        push_to_hub(model, "me/mine")
    assert "upload" not in notes
