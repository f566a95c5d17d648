"""Claims of fewstep/hub/components.py."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from claims.common import Claim, Outcome
from claims.pipelines import matching, tiny
from fewstep.hub.components import open_pipeline


def _pickled(unet: Path) -> None:
    weights = next(unet.glob("*.safetensors"))
    torch.save(load_file(weights), unet / "diffusion_pytorch_model.bin")
    weights.unlink()


def _cut(unet: Path) -> None:
    weights = next(unet.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])


def _refused(seed: int) -> Outcome:
    """A pickled network, a missing one, weights that lack a tensor's worth of bytes: each is refused in one line."""
    pipeline, refused = tiny("DDPMPipeline", matching("ddim", "DDPMPipeline")), 0
    for damage in (_pickled, shutil.rmtree, _cut):
        with tempfile.TemporaryDirectory() as folder:
            pipeline.save_pretrained(folder)
            damage(Path(folder) / "unet")
            try:
                open_pipeline(Path(folder))
            except ValueError as error:
                refused += "\n" not in str(error)
    return Outcome(refused, 2.5, "a bound", "damaged folders refused in one line, of 3", better="high")


CLAIMS = (Claim("diffusers-folder", "a damaged folder is refused with one line", _refused, quick=False),)
