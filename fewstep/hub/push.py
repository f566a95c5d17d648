"""A model on the hub: `fs.push_to_hub(model, "me/digits")`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.plan import Plan
from fewstep.hub.card import model_card
from fewstep.hub.models import save

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@checked
def push_to_hub(
    model: Denoiser | str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    plan: Plan | None = None,
    figures: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    message: str = "Upload model with fewstep",
) -> str:
    """Upload a model, or a folder that `fs.save` wrote, to a repository of the hub; return the address of the commit.

    The repository is created if it does not exist. Other files in it are left alone.

    Args:
        repo_id: "owner/name".
        private: of a new repository; by default the owner's setting.
        token: by default the one of `hf auth login`.
        plan, figures: for the folder and the card of a model, as in `fs.save`.

    Raises:
        ImportError: without huggingface_hub.
        ValueError: a name that is not a repository's, a folder that is not a model's or holds a pickle, no login or no
            permission, no network.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors, utils
    except ImportError:
        raise ImportError("the hub needs huggingface_hub: pip install 'fewstep[hub]'") from None
    try:
        utils.validate_repo_id(repo_id)
    except errors.HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no repository's name: {' '.join(str(error).split())}") from None
    if "/" not in repo_id:
        raise ValueError(f"name the repository with its owner, owner/{repo_id}")
    if not isinstance(model, Denoiser):
        folder = Path(model)
        if plan is not None or figures:
            raise ValueError("a folder holds its plan and card already: give plan and figures with a model")
        if not any((folder / name).is_file() for name in ("config.json", "model_index.json")):
            raise ValueError(f"{folder} is not a model folder: write one with fs.save(model, folder)")
        if pickles := [path.name for path in folder.rglob("*") if path.suffix in PICKLES]:
            raise ValueError(f"{folder} holds {pickles[0]}, a pickle, which is never uploaded")
        return _upload(huggingface_hub.HfApi(token=token), errors, folder, repo_id, private, message)
    with tempfile.TemporaryDirectory() as temporary:
        chosen = plan if plan is not None else model.plan
        card = model_card(model, repo_id, chosen, figures, fetched=True)
        folder = save(model, Path(temporary) / "model", plan=chosen, card=card)
        return _upload(huggingface_hub.HfApi(token=token), errors, folder, repo_id, private, message)


def _upload(api: Any, errors: Any, folder: Path, repo_id: str, private: bool | None, message: str) -> str:
    try:
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, repo_type="model", commit_message=message)
    except errors.LocalTokenNotFoundError:
        raise ValueError("there is no login for the hub: run `hf auth login`, or give token=") from None
    except errors.OfflineModeIsEnabled:
        raise ValueError("the hub is switched off here (HF_HUB_OFFLINE): unset it to upload") from None
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise ValueError(
                f"the hub refused {repo_id!r} ({status}): log in with `hf auth login` as its owner, with a token that"
                " may write"
            ) from None
        raise ValueError(f"the hub did not take {repo_id!r}: {' '.join(str(error).split())[:200]}") from None
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{repo_id!r} could not be uploaded, is there a network? {reason}") from None
    return str(getattr(commit, "commit_url", commit))
