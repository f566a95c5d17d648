"""fewstep: diffusion and flow models in few steps.

    import fewstep as fs
    model = fs.load("digits")
    x = fs.sample(model, 64, label=3, steps=8, seed=0)

Everything here is imported on first use, so `import fewstep` loads nothing heavy.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The one list of public names: read by type checkers, and by `_homes`.
if TYPE_CHECKING:
    from fewstep.acceleration.pipeline import accelerate as accelerate
    from fewstep.conditions.label import Label as Label
    from fewstep.conditions.number import Number as Number
    from fewstep.conditions.picture import Picture as Picture
    from fewstep.conditions.text import Text as Text
    from fewstep.core.denoiser import Denoiser as Denoiser
    from fewstep.core.methods import find as find
    from fewstep.core.methods import methods as methods
    from fewstep.core.noise import Noise as Noise
    from fewstep.core.plan import Plan as Plan
    from fewstep.core.prediction import Prediction as Prediction
    from fewstep.core.process import Process as Process
    from fewstep.denoisers.checks import check_denoiser as check_denoiser
    from fewstep.denoisers.network import NetworkDenoiser as NetworkDenoiser
    from fewstep.denoisers.wrap import wrap as wrap
    from fewstep.distillation.distill import distill as distill
    from fewstep.guidance.guide import guide as guide
    from fewstep.guidance.steer import steer as steer
    from fewstep.hub.adapters import with_adapters as with_adapters
    from fewstep.hub.checkpoints import load_checkpoint as load_checkpoint
    from fewstep.hub.models import load as load
    from fewstep.hub.models import save as save
    from fewstep.hub.onnx import export_onnx as export_onnx
    from fewstep.hub.onnx import load_onnx as load_onnx
    from fewstep.hub.program import export_program as export_program
    from fewstep.hub.program import load_program as load_program
    from fewstep.hub.push import push_to_hub as push_to_hub
    from fewstep.operators.checks import check_operator as check_operator
    from fewstep.restoration.calibrate import calibrate as calibrate
    from fewstep.restoration.codec import decode as decode
    from fewstep.restoration.codec import encode as encode
    from fewstep.restoration.restore import posterior as posterior
    from fewstep.restoration.restore import restore as restore
    from fewstep.sampling.adjoint import sample_with_gradient as sample_with_gradient
    from fewstep.sampling.build import plan as plan
    from fewstep.sampling.compiled import compile as compile
    from fewstep.sampling.hybrid import hybrid as hybrid
    from fewstep.sampling.likelihood import bits_per_dim as bits_per_dim
    from fewstep.sampling.likelihood import log_likelihood as log_likelihood
    from fewstep.sampling.mixed import run_mixed as run_mixed
    from fewstep.sampling.parallel import run_parallel as run_parallel
    from fewstep.sampling.sample import sample as sample
    from fewstep.searching.cache import cache as cache
    from fewstep.searching.compare import compare as compare
    from fewstep.searching.evaluate import evaluate as evaluate
    from fewstep.searching.find_noise import find_noise as find_noise
    from fewstep.searching.search import search as search
    from fewstep.training.fit import fit as fit
    from fewstep.training.trainer import train as train


def _homes() -> dict[str, str]:
    """The module of each public name, read from this file's own list above."""
    (listed,) = (node for node in ast.parse(Path(__file__).read_text("utf-8")).body if isinstance(node, ast.If))
    imports = [node for node in listed.body if isinstance(node, ast.ImportFrom)]
    return {name.name: str(node.module) for node in imports for name in node.names}


HOMES = _homes()
__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name == "operators":  # a room whose classes are public names of it
        return import_module("fewstep.operators")
    if name not in HOMES:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__, "operators"]
