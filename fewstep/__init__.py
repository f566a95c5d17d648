"""fewstep: diffusion and flow models in few steps.

    import fewstep as fs
    model = fs.load("digits")
    x = fs.sample(model, 64, label=3, steps=8, seed=0)

Everything here is imported on first use, so `import fewstep` loads nothing heavy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fewstep.accelerate.evaluate import evaluate as evaluate
    from fewstep.accelerate.pipeline import accelerate as accelerate
    from fewstep.core.condition import Label as Label
    from fewstep.core.condition import Picture as Picture
    from fewstep.core.condition import Text as Text
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
    from fewstep.guidance.guide import guide as guide
    from fewstep.hub.checkpoints import load_checkpoint as load_checkpoint
    from fewstep.hub.models import load as load
    from fewstep.hub.models import save as save
    from fewstep.hub.onnx import export_onnx as export_onnx
    from fewstep.hub.onnx import load_onnx as load_onnx
    from fewstep.hub.program import export_program as export_program
    from fewstep.hub.program import load_program as load_program
    from fewstep.hub.push import push_to_hub as push_to_hub
    from fewstep.sampling.adjoint import sample_with_gradient as sample_with_gradient
    from fewstep.sampling.build import plan as plan
    from fewstep.sampling.compiled import compile as compile
    from fewstep.sampling.likelihood import bits_per_dim as bits_per_dim
    from fewstep.sampling.likelihood import log_likelihood as log_likelihood
    from fewstep.sampling.mixed import run_mixed as run_mixed
    from fewstep.sampling.parallel import run_parallel as run_parallel
    from fewstep.sampling.sample import sample as sample
    from fewstep.search.compare import compare as compare
    from fewstep.search.search import search as search
    from fewstep.training.fit import fit as fit
    from fewstep.training.trainer import train as train

_HOMES = {
    "accelerate": "fewstep.accelerate.pipeline",
    "bits_per_dim": "fewstep.sampling.likelihood",
    "compare": "fewstep.search.compare",
    "compile": "fewstep.sampling.compiled",
    "log_likelihood": "fewstep.sampling.likelihood",
    "run_mixed": "fewstep.sampling.mixed",
    "run_parallel": "fewstep.sampling.parallel",
    "sample_with_gradient": "fewstep.sampling.adjoint",
    "evaluate": "fewstep.accelerate.evaluate",
    "Denoiser": "fewstep.core.denoiser",
    "Label": "fewstep.core.condition",
    "Picture": "fewstep.core.condition",
    "Text": "fewstep.core.condition",
    "fit": "fewstep.training.fit",
    "guide": "fewstep.guidance.guide",
    "find": "fewstep.core.methods",
    "methods": "fewstep.core.methods",
    "Noise": "fewstep.core.noise",
    "Plan": "fewstep.core.plan",
    "Prediction": "fewstep.core.prediction",
    "Process": "fewstep.core.process",
    "NetworkDenoiser": "fewstep.denoisers.network",
    "check_denoiser": "fewstep.denoisers.checks",
    "wrap": "fewstep.denoisers.wrap",
    "load": "fewstep.hub.models",
    "load_checkpoint": "fewstep.hub.checkpoints",
    "save": "fewstep.hub.models",
    "export_onnx": "fewstep.hub.onnx",
    "load_onnx": "fewstep.hub.onnx",
    "export_program": "fewstep.hub.program",
    "load_program": "fewstep.hub.program",
    "push_to_hub": "fewstep.hub.push",
    "plan": "fewstep.sampling.build",
    "sample": "fewstep.sampling.sample",
    "search": "fewstep.search.search",
    "train": "fewstep.training.trainer",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _Package(ModuleType):
    """Keeps `fs.search` and `fs.accelerate` the functions: importing a room binds its module to the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
