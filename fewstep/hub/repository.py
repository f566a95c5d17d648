"""A model's repository on the hub: the files that are loaded, from the local cache or fetched, and no others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.denoisers.folder import CONFIG, EXPERTS, PARTS, PLAN, WEIGHTS
from fewstep.hub.components import INDEX, components, read_index
from fewstep.hub.weights import chosen_variant, variants, weight_files

# What is loaded of a repository in fewstep's own format. No pickle, no code.
_KEPT = (CONFIG, WEIGHTS, PLAN)
OWN = [*_KEPT, EXPERTS, *(f"*/{name}" for name in _KEPT), f"{PARTS}/*.json", f"{PARTS}/*.safetensors", f"{PARTS}/*.txt",
       f"{PARTS}/*.model"]  # fmt: skip


def repository(name: str, download: bool = False, revision: str | None = None, variant: str | None = None) -> Path:
    """The local folder of a repository: from the cache, whoever filled it, or fetched if that is allowed.

    Raises:
        ImportError: without huggingface_hub.
        ValueError: a repository that does not exist, is not in the cache as far as it is loaded, or is no model.
    """
    fetch = _Fetch(name, download, revision)
    # A cache that another library filled need not have the files that say that a model is ours.
    folder = fetch([INDEX, CONFIG, EXPERTS] if download else [INDEX])
    if (folder / INDEX).is_file():
        return _pipeline(fetch, folder, variant)
    if variant is not None:
        raise ValueError(f"variant is for diffusers pipelines, and the repository {fetch.at} is none")
    if not any(_ours(folder / file) for file in (CONFIG, EXPERTS)):
        raise ValueError(
            f"the repository {fetch.at} holds no model: it has neither {INDEX} nor a {CONFIG} of fewstep's"
        )
    return fetch(OWN)


def configuration(name: str, download: bool = False, revision: str | None = None) -> Path:
    """The local folder of a pipeline's repository with its configurations and tokenizers, without weights.

    Raises:
        ValueError: as `repository`.
    """
    fetch = _Fetch(name, download, revision)
    folder = fetch([INDEX])
    if not (folder / INDEX).is_file():
        raise ValueError(f"the repository {fetch.at} holds no {INDEX}")
    parts = components(read_index(folder))
    if download:
        return fetch(
            [
                INDEX,
                *(f"{part}/{file}" for part, (_, kind) in parts.items() for file in _files(kind) or ["config.json"]),
            ]
        )
    if lacking := [part for part in parts if not (folder / part).is_dir()]:
        raise ValueError(f"the repository {fetch.at} is in the local cache without {lacking[0]}/")
    return folder


def _ours(path: Path) -> bool:
    try:
        return str(json.loads(path.read_text("utf-8")).get("format")).startswith("fewstep")
    except (OSError, ValueError, AttributeError):
        return False


def _pipeline(fetch: _Fetch, folder: Path, variant: str | None) -> Path:
    """The files of a pipeline: those that its index names, one variant of each network."""
    parts = components(read_index(folder))
    networks = {name: library for name, (library, kind) in parts.items() if not _files(kind)}
    if not fetch.download:
        for name in parts:
            if not (folder / name).is_dir() or (name in networks and not variants(_names(folder / name))):
                raise ValueError(
                    f"the repository {fetch.at} is in the local cache without {name}/: give download=True to fetch it"
                )
        return folder
    wanted = [INDEX, PLAN, *(f"{name}/{file}" for name, (_, kind) in parts.items() for file in _files(kind))]
    wanted += [f"{name}/config.json" for name in networks]
    folder = fetch(wanted + _weights(networks, variant))
    if variant is not None:
        left = _without(folder, networks)
        if len(left) == len(networks):
            raise ValueError(f"the repository {fetch.at} has no weights of the variant {variant!r}")
        folder = fetch(_weights(left, None)) if left else folder
    if left := _without(folder, networks):
        listed = fetch.files()
        for name, library in left.items():
            own = [file.removeprefix(f"{name}/") for file in listed if file.startswith(f"{name}/")]
            only = chosen_variant(f"{name}/ of {fetch.at}", own, variant)
            folder = fetch(_weights({name: library}, only))
    return folder


def _files(kind: str) -> list[str]:
    """Patterns of the files of a component without weights; none for a network."""
    if "Tokenizer" in kind:
        return ["*.json", "*.txt", "*.model"]
    return ["scheduler_config.json"] if "Scheduler" in kind else []


def _weights(networks: Mapping[str, str], variant: str | None) -> list[str]:
    return [f"{name}/{file}" for name, library in networks.items() for file in weight_files(library, variant)]


def _without(folder: Path, networks: Mapping[str, str]) -> dict[str, str]:
    """The networks that have no weights in the folder."""
    return {name: library for name, library in networks.items() if not variants(_names(folder / name))}


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


class _Fetch:
    """The folder of a repository with the files that match patterns, from the cache or fetched if that is allowed."""

    def __init__(self, name: str, download: bool, revision: str | None):
        try:
            import huggingface_hub
            import huggingface_hub.errors  # a module of its own, which newer versions do not import by themselves
        except ImportError:
            raise ImportError("a hub repository needs huggingface_hub: pip install 'fewstep[hub]'") from None
        self.hub: Any = huggingface_hub
        self.name, self.download, self.revision = name, download, revision
        self.at = f"{name!r}" + (f" at revision {revision!r}" if revision else "")

    def __call__(self, patterns: Sequence[str]) -> Path:
        with self._explained():
            return Path(
                self.hub.snapshot_download(
                    self.name,
                    revision=self.revision,
                    local_files_only=not self.download,
                    allow_patterns=list(patterns),
                )
            )

    def files(self) -> list[str]:
        """The names of all its files, as the hub lists them."""
        with self._explained():
            return list(self.hub.HfApi().list_repo_files(self.name, revision=self.revision))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        errors = self.hub.errors
        try:
            yield
        except errors.GatedRepoError:
            raise ValueError(
                f"the repository {self.at} is gated: accept its terms on its page and log in first"
            ) from None
        except errors.RevisionNotFoundError:
            raise ValueError(f"the repository {self.name!r} has no revision {self.revision!r}") from None
        except errors.RepositoryNotFoundError:
            raise ValueError(
                f"there is no repository {self.at} on the hub, or it is private and needs a login"
            ) from None
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
            if not self.download:
                raise ValueError(
                    f"there is no folder {self.name}, and the repository {self.at} is not in the local cache: give"
                    " download=True to fetch it from the hub"
                ) from None
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"the repository {self.at} could not be fetched, is there a network? {reason}") from None
