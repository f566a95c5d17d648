"""A denoiser as one self-contained ONNX file, run by ONNX Runtime under any plan."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.picture import Picture
from fewstep.core.arguments import checked
from fewstep.core.condition import Condition, condition_from_config
from fewstep.core.denoiser import Denoiser
from fewstep.core.files import write
from fewstep.core.methods import Method
from fewstep.core.mode import evaluating
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.process import process_from_config
from fewstep.core.student import Student

METHODS = (
    Method(
        "onnx", kind="export", claim="a denoiser as one file for ONNX Runtime, which every plan runs", use="export_onnx"
    ),
)

FORMAT = "fewstep-onnx-1"
KEY = "fewstep"  # of the metadata
LARGEST = 2**31 - 2**20  # a protocol buffer holds at most 2 GB
FLOATS = {"tensor(float)": torch.float32, "tensor(double)": torch.float64}  # as ONNX calls the types of inputs
_NEEDS = "ONNX needs onnx, onnxruntime and onnxscript: pip install 'fewstep[export]'"


class Bare(nn.Module):
    """`(x, t, *conditions) -> value`: a denoiser as a function of tensors alone."""

    def __init__(self, model: Denoiser, names: Sequence[str]):
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, x: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        return self.model(x, t, **dict(zip(self.names, conditions, strict=True))).value


def example(model: Denoiser, batch: int) -> dict[str, Tensor]:
    """Conditions to trace a model with: the empty ones, and zeros where there is none. Those that a model does without,
    such as a guided model's scale, are among them by their default, so that what is exported takes them; one that needs
    an encoder outside a file, such as a negative prompt, stays inside as it is."""
    device = model.device
    pictures = {
        name: torch.zeros(kind.shape, device=device)
        for name, kind in model.conditions.items()
        if isinstance(kind, Picture)
    }
    named = model.check_condition(pictures, batch, device)
    further = {
        name: kind.check(name, None, batch, device)
        for name, kind in model.conditions.items()
        if name not in named and _fits(kind)
    }
    return {name: value.contiguous() for name, value in (named | further).items()}


def as_configs(model: Denoiser, given: dict[str, Tensor]) -> dict[str, Any]:
    """Conditions in a file. One that needs an encoder outside it, such as a prompt, is stored as its tensors."""
    return {
        name: model.conditions[name].config()
        if _fits(model.conditions[name])
        else Picture(tuple(tensor.shape[1:])).config()
        for name, tensor in given.items()
    }


def _fits(kind: Condition) -> bool:
    """Whether a condition can be made from what a file holds of it."""
    try:
        condition_from_config(kind.config())
    except ValueError:
        return False
    return True


@checked
@torch.no_grad()
def export_onnx(model: Denoiser, path: str | os.PathLike[str]) -> Path:
    """Write a denoiser as an ONNX file with a batch of any size; `load_onnx` opens it.

    Inputs `x` `(B, *shape)` float32, `t` `(B,)` float32 in the process's time, and the conditions by their names;
    output `value` `(B, *shape)`. The metadata state what it predicts and under which process. Encoders of prompts and
    autoencoders stay outside: their tensors are the conditions, and the samples are latents.

    Raises:
        ImportError: without ONNX.
        ValueError: a model without a shape, in another dtype than float32, too large for one file, or with an
            operation that ONNX lacks.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ImportError(_NEEDS) from None
    path = Path(path)
    if model.shape is None:
        raise ValueError("an ONNX file holds one shape of samples: set model.shape = (...)")
    if model.dtype != torch.float32:
        raise ValueError(f"an ONNX file is written from a float32 model, got {model.dtype}: use model.float()")
    size = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
    if size > LARGEST:
        raise ValueError(f"the weights take {size / 2**30:.1f} GB, and an ONNX file at most 2")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    conditions = example(model, 2)
    x, t = torch.zeros(2, *model.shape, device=model.device), torch.full((2,), model.process.t_max, device=model.device)
    with evaluating(model):
        kind = model(x, t, **conditions).kind
    about = {
        "format": FORMAT,
        "process": model.process.config(),
        "predicts": kind,
        "shape": list(model.shape),
        "value_range": list(model.value_range) if model.value_range else None,
        "conditions": as_configs(model, conditions),
        "plan": model.plan.to_json() if model.plan is not None else None,
        "student": model.student.config() if model.student is not None else None,
    }
    batch = torch.export.Dim("batch")
    free: Any = ({0: batch}, {0: batch})
    free += (tuple({0: batch} for _ in conditions),) if conditions else ()
    inputs = (x, t, *conditions.values())
    log = logging.getLogger("torch.onnx")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), evaluating(model):
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                Bare(model, list(conditions)).eval(),  # the wrapper's own flag: those of its parts are kept above
                inputs,
                input_names=["x", "t", *conditions],
                output_names=["value"],
                dynamic_shapes=free,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        line = str(error).strip().splitlines()[0]
        raise ValueError(f"this model, a {type(model).__name__}, does not go into ONNX: {line}") from error
    finally:
        log.setLevel(level)
    assert made is not None
    proto = made.model_proto
    proto.metadata_props.add(key=KEY, value=json.dumps(about))
    return write(path, proto.SerializeToString())


class OnnxDenoiser(Denoiser):
    """A denoiser whose network is a file run by ONNX Runtime; its tensors live on the CPU."""

    def __init__(self, session: Any, about: Mapping[str, Any]):
        super().__init__()
        self.session = session
        self._floats = {each.name: FLOATS[each.type] for each in session.get_inputs() if each.type in FLOATS}
        self.process = process_from_config(about["process"])
        self.kind, self.shape = str(about["predicts"]), tuple(int(n) for n in about["shape"])
        self.value_range = tuple(about["value_range"]) if about["value_range"] else None
        self.conditions = {name: condition_from_config(config) for name, config in about["conditions"].items()}
        self.plan = Plan.from_json(about["plan"]) if about["plan"] else None
        self.student = Student.from_config(about["student"]) if about.get("student") else None

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        fed = {"x": x, "t": t.expand(len(x)), **condition}
        fed = {name: value.to(self._floats.get(name, value.dtype)) for name, value in fed.items()}
        arrays = {name: value.detach().contiguous().numpy() for name, value in fed.items()}
        value = torch.from_numpy(self.session.run(["value"], arrays)[0])
        return Prediction(value.to(x.dtype), self.kind, x, t, self.process)


@checked
def load_onnx(path: str | os.PathLike[str], providers: Sequence[str] = ("CPUExecutionProvider",)) -> OnnxDenoiser:
    """Open the file that `export_onnx` wrote, as a denoiser.

    Args:
        providers: ONNX Runtime's execution providers, in order.

    Raises:
        ImportError: without ONNX Runtime.
        ValueError: no such file, a file that is not an ONNX model or not one of ours, a provider that is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ImportError(_NEEDS) from None
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    known = onnxruntime.get_available_providers()
    if missing := [name for name in providers if name not in known]:
        raise ValueError(f"ONNX Runtime has no {missing[0]!r} here; it has {', '.join(known)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=list(providers))
    except Exception as error:  # its errors share no class
        raise ValueError(f"{path} is no ONNX model: {str(error).splitlines()[0]}") from None
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    try:
        about = json.loads(text or "{}")
        if about.get("format") != FORMAT:
            raise ValueError(f"it says format {about.get('format')!r}, expected {FORMAT!r}")
        return OnnxDenoiser(session, about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a model that export_onnx wrote: {error}") from None
