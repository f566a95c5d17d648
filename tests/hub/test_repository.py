"""Repositories of the hub: what is fetched of them, and a cache that others filled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import fewstep as fs

hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("diffusers")
from claims.pipelines import matching  # noqa: E402

NAME = "someone/tiny"
KIND = "StableDiffusionPipeline"


@pytest.fixture(scope="module")
def whole(tiny):
    return tiny(KIND, matching("ddim", KIND))


class Remote:
    """A repository with these files beside a pipeline's; it counts the bytes that are fetched, each file once."""

    def __init__(self, folder: Path, cache: Path, patch: pytest.MonkeyPatch):
        self.folder, self.cache, self.fetched = folder, cache, set()
        patch.setattr(hub, "snapshot_download", self.snapshot)
        patch.setattr(hub.HfApi, "list_repo_files", lambda api, name, revision=None: self.files())

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def add(self, *names: str, size: int = 10**6) -> None:
        for name in names:
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_bytes(bytes(size))

    def snapshot(self, name, *, revision, local_files_only, allow_patterns):
        assert not local_files_only
        for file in hub.utils.filter_repo_objects(self.files(), allow_patterns=allow_patterns):
            self.fetched.add(file)
            (self.cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folder / file, self.cache / file)
        return str(self.cache)

    @property
    def bytes(self) -> int:
        return sum((self.folder / file).stat().st_size for file in self.fetched)


@pytest.fixture
def remote(whole, tmp_path, monkeypatch):
    made = Remote(shutil.copytree(whole[1], tmp_path / "remote"), tmp_path / "cache", monkeypatch)
    made.cache.mkdir()
    monkeypatch.chdir(tmp_path)
    return made


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_nothing_is_fetched_that_is_not_loaded(remote, whole):
    loaded = size(whole[1])
    weights = ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors",
               "diffusion_pytorch_model.non_ema.safetensors", "diffusion_flax_model.msgpack", "model.onnx",
               "diffusion_pytorch_model-00001-of-00002.fp16.safetensors"]  # fmt: skip
    remote.add("v1-5-pruned.safetensors", "v1-5-pruned.ckpt", "README.md", "flax_model.msgpack")
    remote.add(*(f"unet/{name}" for name in weights), *(f"vae/{name}" for name in weights))
    remote.add("text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin", "safety_checker/config.json")
    remote.add("safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json")
    remote.add("text_encoder/model-00001-of-00002.fp16.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors")
    assert fs.load(NAME, download=True).shape == (4, 8, 8)
    assert remote.bytes == loaded and size(remote.folder) > 10 * loaded


def test_one_variant_is_fetched(remote, whole, tmp_path):
    whole[0].save_pretrained(tmp_path / "half", variant="fp16")
    shutil.copytree(tmp_path / "half", remote.folder, dirs_exist_ok=True)
    (remote.folder / "text_encoder" / "model.fp16.safetensors").unlink()  # which is there without one alone
    fs.load(NAME, download=True, variant="fp16")
    kept = {name for name in remote.fetched if name.endswith(".safetensors")}
    assert kept == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors",
    }
    remote.fetched.clear()
    shutil.rmtree(remote.cache)
    remote.cache.mkdir()
    with pytest.raises(ValueError, match="'someone/tiny' has no weights of the variant 'bf16'"):
        fs.load(NAME, download=True, variant="bf16")
    assert not any(name.endswith(".safetensors") for name in remote.fetched)


def test_the_only_variant_is_found_in_the_listing(remote, whole, tmp_path):
    whole[0].save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="20KB")
    shutil.rmtree(remote.folder / "unet")
    shutil.copytree(tmp_path / "half" / "unet", remote.folder / "unet")
    assert fs.load(NAME, download=True).shape == (4, 8, 8)
    remote.add("text_encoder/model.bf16.safetensors", "text_encoder/model.fp16.safetensors")
    (remote.folder / "text_encoder" / "model.safetensors").unlink()
    shutil.rmtree(remote.cache)
    remote.cache.mkdir()
    with pytest.raises(ValueError, match="text_encoder/ of 'someone/tiny' has weights in the variants 'bf16' and 'fp"):
        fs.load(NAME, download=True)


def test_a_repository_of_ours_and_one_of_others(remote, tmp_path):
    shutil.rmtree(remote.folder)
    fs.save(fs.load("digits"), remote.folder)
    remote.add("runs/picture.png", "pytorch_model.bin")
    assert fs.load(NAME, download=True).shape == (1, 8, 8)
    assert {name for name in remote.fetched if "." in name} == {"config.json", "model.safetensors"}
    with pytest.raises(
        ValueError, match="variant is for diffusers pipelines, and the repository 'someone/tiny' is none"
    ):
        fs.load(NAME, download=True, variant="fp16")
    (remote.folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    remote.fetched.clear()
    with pytest.raises(
        ValueError, match="the repository 'someone/tiny' holds no model: it has neither model_index.json"
    ):
        fs.load(NAME, download=True)
    assert remote.fetched == {"config.json"}


@pytest.fixture
def cached(whole, tmp_path, monkeypatch):
    """The cache of a repository that another library filled in part, and the listing of the whole."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "cache" / "models--someone--tiny", "a" * 40
    snapshot = Path(shutil.copytree(whole[1], repository / "snapshots" / commit))
    files = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    files += ["v1-5.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "config.json", "README.md"]
    for folder in ("refs", "trees"):
        (repository / folder).mkdir()
    (repository / "refs" / "main").write_text(commit)
    listing = {"format_version": 1, "files": {name: {"size": 1, "blob_id": "0" * 40} for name in files}}
    (repository / "trees" / f"{commit}.json").write_text(json.dumps(listing))
    monkeypatch.chdir(tmp_path)
    return snapshot


def test_a_cache_that_another_library_filled(cached):
    assert fs.load(NAME).shape == (4, 8, 8)


def test_a_cache_that_lacks_what_is_loaded(cached):
    next((cached / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match="'someone/tiny' is in the local cache without unet/: give download=True") as e:
        fs.load(NAME)
    assert "\n" not in str(e.value)
    shutil.rmtree(cached / "tokenizer")
    with pytest.raises(ValueError, match="is in the local cache without (unet|tokenizer)/"):
        fs.load(NAME)
