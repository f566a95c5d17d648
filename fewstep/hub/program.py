"""A plan and its network as one program of `torch.export`: noise in, samples out, no fewstep needed to run it."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.arguments import checked
from fewstep.core.condition import condition_from_config
from fewstep.core.denoiser import Denoiser
from fewstep.core.files import write
from fewstep.core.methods import Method
from fewstep.core.mode import evaluating
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan, as_plan
from fewstep.core.run import check_given
from fewstep.core.sampler import Sampler
from fewstep.core.unrolled import unrolled
from fewstep.hub.onnx import as_configs, example

METHODS = (
    Method(
        "program",
        kind="export",
        claim="a plan and its network exported as one graph of torch.export",
        use="export_program",
    ),
)

FORMAT = "fewstep-program-1"
ABOUT = "fewstep.json"  # an extra file of torch.export's archive

# The files in an archive of `export_program`: raw tensors, the graph as JSON, and no example inputs.
_FILES = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/fewstep\.json|archive_format|archive_version|byteorder"
    r"|\.data/\w+"
)
# What a graph may call, and the words in its sizes: torch's reader looks up any name, and evaluates sizes as Python.
_CALLS = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+|math\.\w+|torch\.sym_\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|getitem|eq|ne|lt|le|gt|ge|and_|or_)"
)
_WORDS = re.compile(
    r"[su]\d+|Symbol|Integer|Rational|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Max|Min|Eq|Ne|Lt|Le|Gt|Ge"
    r"|oo|int_oo|positive|integer|nonnegative|True|False"
)


class _Program(nn.Module):
    """`(noise, step noises, *conditions) -> samples`, the loop unrolled."""

    def __init__(self, plan: Plan, model: Denoiser, kind: str, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names
        table, sigma = plan.table, plan.start[1]
        self.structure, self.draws = table.structure, _draws(plan)
        times, weights, conversions = table.numbers(kind, model.device, torch.float32)
        self.evaluations, self.stages = len(times), len(weights)
        self.told = [tuple(name for name, _ in op.given) for op in table.evaluations]
        given = [torch.tensor([value for _, value in op.given]).to(model.device) for op in table.evaluations]
        for what, tensors in (("time", times), ("weight", weights), ("conversion", conversions), ("given", given)):
            for k, tensor in enumerate(tensors):
                self.register_buffer(f"{what}_{k}", tensor.clone())
        self.start_scale: Tensor
        self.start: float | None = None
        if isinstance(sigma, tuple):  # one for each element
            self.register_buffer("start_scale", table.array([[sigma]])[0, 0].to(model.device, torch.float32))
        else:
            self.start = sigma

    def forward(self, noise: Tensor, steps: Tensor, *conditions: Tensor) -> Tensor:
        given = [
            {name: getattr(self, f"given_{k}")[i] for i, name in enumerate(names)} for k, names in enumerate(self.told)
        ]
        return unrolled(
            self.structure,
            self.model,
            noise * (self.start if self.start is not None else self.start_scale),
            [getattr(self, f"time_{k}") for k in range(self.evaluations)],
            [getattr(self, f"weight_{k}") for k in range(self.stages)],
            [getattr(self, f"conversion_{k}") for k in range(self.stages)],
            [steps[k] for k in range(self.draws)],
            dict(zip(self.names, conditions, strict=True)),
            given,
        )


def _draws(plan: Sampler) -> int:
    """The highest number of a draw."""
    return max((draw for stage in plan.table.stages for draw in stage.drawn), default=0)


@checked
@torch.no_grad()
def export_program(sampler: Sampler, model: Denoiser, path: str | os.PathLike[str], batch: int | None = None) -> Path:
    """Write the plan with the network as one program; `load_program` opens it.

    The graph takes `noise` `(B, *shape)`, `steps` `(D, B, *shape)`, the standard normals of the plan's D draws (D = 0
    for deterministic plans), and the conditions as tensors, and returns samples `(B, *shape)`, all float32. Times and
    coefficients are buffers of it.

    Args:
        batch: a fixed batch size; by default any.

    Raises:
        ValueError: a plan for another process or with no table, one that starts in the middle, a model without a shape
            or in another dtype than float32, an operation that torch.export cannot follow.
    """
    path, plan = Path(path), as_plan(sampler)
    if model.shape is None:
        raise ValueError("a program holds one shape of samples: set model.shape = (...)")
    if not plan.fits(model.process):
        raise ValueError("the plan was made for another process: make it with fs.plan(model.process, ...)")
    if model.dtype != torch.float32:
        raise ValueError(f"a program is written from a float32 model, got {model.dtype}: use model.float()")
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    size, draws = batch or 2, _draws(plan)
    conditions = example(model, size)
    check_given(plan.table, model)
    noise = torch.zeros(size, *model.shape, device=model.device)
    steps = torch.zeros(draws, size, *model.shape, device=model.device)
    first = torch.tensor(plan.evaluations[0].t, device=model.device)
    with evaluating(model):
        kind = model(noise, first, **conditions).kind
    about = {
        "format": FORMAT,
        "plan": plan.to_json(),
        "shape": list(model.shape),
        "batch": batch,
        "draws": draws,
        "value_range": list(model.value_range) if model.value_range else None,
        "conditions": as_configs(model, conditions),
    }
    free: Any = None
    if batch is None:
        any_batch = torch.export.Dim("batch")
        free = ({0: any_batch}, {1: any_batch})
        free += (tuple({0: any_batch} for _ in conditions),) if conditions else ()
    whole = _Program(plan, model, kind, tuple(conditions))
    try:
        with evaluating(whole):
            made = torch.export.export(whole, (noise, steps, *conditions.values()), dynamic_shapes=free)
    except Exception as error:  # its errors share no class
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"torch.export cannot follow this model, a {type(model).__name__}: {line}") from error
    file = io.BytesIO()
    made._example_inputs = None  # they would be stored as a pickle
    made._guards_code = []  # text that loading would execute; `SamplingProgram` checks shapes itself
    torch.export.save(made, file, extra_files={ABOUT: json.dumps(about)})
    return write(path, file.getvalue())


class SamplingProgram:
    """A loaded program. `program(noise, seed=0, label=3)` returns samples; `program.plan` is the plan inside."""

    def __init__(self, graph: Any, about: Mapping[str, Any]):
        self.graph = graph
        self.plan = Plan.from_json(about["plan"])
        self.shape = tuple(int(n) for n in about["shape"])
        self.batch, self.draws = about["batch"], int(about["draws"])
        self.value_range = about["value_range"]
        self.conditions = {name: condition_from_config(config) for name, config in about["conditions"].items()}

    @torch.no_grad()
    def __call__(
        self, noise: Tensor, *, seed: int = 0, first: int = 0, steps: Tensor | None = None, **condition: Any
    ) -> Tensor:
        """Samples `(B, *shape)` from noise `(B, *shape)`.

        Args:
            seed, first: the stream of the steps' noise, as in `Plan.run`.
            steps: that noise itself `(draws, B, *shape)`.

        Raises:
            ValueError: noise of another shape or batch, steps of another shape, an unknown condition.
        """
        if noise.shape[1:] != self.shape or (self.batch is not None and len(noise) != self.batch):
            wanted = ", ".join(map(str, (self.batch or "B", *self.shape)))
            raise ValueError(f"the program takes noise ({wanted}), got {tuple(noise.shape)}")
        shape = tuple(noise.shape)
        if steps is None:
            source = Noise(seed, first)
            drawn = [source.normal(k + 1, shape, noise.device) for k in range(self.draws)]
            steps = torch.stack(drawn) if drawn else noise.new_zeros((0, *shape))
        elif tuple(steps.shape) != (self.draws, *shape):
            raise ValueError(f"steps must have shape {(self.draws, *shape)}, got {tuple(steps.shape)}")
        if unknown := sorted(set(condition) - set(self.conditions)):
            raise ValueError(f"this program takes no {unknown[0]!r}; it takes {sorted(self.conditions) or 'none'}")
        given = [
            kind.check(name, condition.get(name), len(noise), noise.device) for name, kind in self.conditions.items()
        ]
        return self.graph(noise.float(), steps.float(), *(value.contiguous() for value in given))


@checked
def load_program(path: str | os.PathLike[str]) -> SamplingProgram:
    """Open the file that `export_program` wrote.

    torch.export stores tensors as raw bytes and the graph as JSON, but its reader also takes pickles, compiled
    libraries, and text that it evaluates. So the archive is inspected first: anything but raw tensors, a graph of
    torch's own tensor operators and plain sizes is refused, and nothing is unpickled. What remains is trusted to
    torch: its reader, and its operators on the numbers of the file.

    Raises:
        ValueError: no such file, one that `export_program` did not write, or one that holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    data = path.read_bytes()
    try:
        about = _look_through(data)
        graph = torch.export.load(io.BytesIO(data)).module(check_guards=False)
        return SamplingProgram(graph, about)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a program that export_program wrote: {error}") from None


def _look_through(data: bytes) -> dict[str, Any]:
    """fewstep's description of the program; `ValueError` for an archive with anything that could run code."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = {name.partition("/")[2]: name for name in archive.namelist()}
        if len(found) != len(archive.namelist()) or len({name.partition("/")[0] for name in found.values()}) != 1:
            raise ValueError("it holds a file twice, or outside its own folder")
        if other := [name for name in found if not _FILES.fullmatch(name)]:
            raise ValueError(f"it holds {other[0]!r}")
        if archive.getinfo(found["data/sample_inputs/model.pt"]).file_size:
            raise ValueError("it holds example inputs, which are a pickle")
        for kind, prefix in (("weights", "weight_"), ("constants", "tensor_")):
            config = json.loads(archive.read(found[f"data/{kind}/model_{kind}_config.json"]))
            for name, entry in config["config"].items():
                if entry["use_pickle"] or not re.fullmatch(prefix + r"\d+", entry["path_name"]):
                    raise ValueError(f"it holds {name!r} as a pickle")
        model = json.loads(archive.read(found["models/model.json"]))
        if model.get("guards_code"):
            raise ValueError("it holds code to execute (guards)")
        for key, text in _strings(model):
            if key in ("target", "as_operator") and not _CALLS.fullmatch(text):
                raise ValueError(f"its graph calls {text!r}")
            if key == "expr_str":
                words = re.findall(r"[A-Za-z_]\w*", text)
                if not re.fullmatch(r"[\w\s'(),=+*/-]*", text) or not all(map(_WORDS.fullmatch, words)):
                    raise ValueError(f"it states a size by {text!r}")
        about = json.loads(archive.read(found[f"extra/{ABOUT}"]))
    if about.get("format") != FORMAT:
        raise ValueError(f"format {about.get('format')!r}, expected {FORMAT!r}")
    return about


def _strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a JSON tree with its key."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, Mapping):
        for name, value in node.items():
            yield from _strings(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value, key)
