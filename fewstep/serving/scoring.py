"""How well each option draws each caption, measured: the table that a router is fitted to.

A folder holds `scores.json`, which says what is scored, and `scores.safetensors`, what has been scored so far: a killed
run goes on where it was.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole
from fewstep.core.denoiser import Denoiser
from fewstep.core.files import read_text, write
from fewstep.core.noise import Noise
from fewstep.core.sampler import Sampler
from fewstep.guidance.guide import guide
from fewstep.sampling.sample import choose_plan
from fewstep.serving.routing import Option

FORMAT = "fewstep-scores-1"
FACTS, TENSORS = "scores.json", "scores.safetensors"
CHUNK = 50  # captions between two writes
UNITS = ("evaluations", "seconds")

# (pictures (B, 3, 32, 32), captions) to whether, or how well, each shows what was asked, (B,) in [0, 1].
Judge = Callable[[Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True)
class Scores:
    """N captions, M options with their costs, and the quality `(N, M)` that each reached, in [0, 1]."""

    captions: tuple[str, ...]
    options: tuple[Option, ...]
    quality: Tensor
    unit: str


def shapes_captions(n: int, seed: int = 0, without: Sequence[str] = (), split: str = "train") -> list[str]:
    """n captions of `shapes`, all different and none of `without`: those of its rows, from row 1,000,000 seed on.

    Rows of "train" beyond its end are combinations that models were trained on; no training picture shows those of
    "validation".

    Raises:
        ValueError: n below 1, a seed below 0, more captions than there are.
    """
    from fewstep.data.shapes import captions

    start, found = check_whole("seed", seed, 0) * 1_000_000, dict.fromkeys(without)
    taken = len(found)
    for first in range(start, start + 1_000_000, 1000):
        for caption in captions(torch.arange(first, first + 1000), split):
            found.setdefault(caption)
            if len(found) - taken == check_whole("n", n):
                return list(found)[taken:]
    raise ValueError(f"shapes has fewer than {n} captions beside the {taken} that are left out")


def judged(pictures: Tensor, captions: Sequence[str]) -> Tensor:
    """Whether pictures of `shapes` show all that their captions ask for, by the exact verifier."""
    from fewstep.metrics.shapes_verifier import check

    return check(pictures.clamp(-1, 1).cpu(), captions).full


def score(
    models: Mapping[str, Denoiser],
    options: Sequence[Option],
    captions: Sequence[str],
    *,
    pictures: int = 1,
    seed: int = 0,
    unit: str = "evaluations",
    judge: Judge = judged,
    folder: str | os.PathLike[str] | None = None,
    advance: Callable[[], None] | None = None,
) -> Scores:
    """Draw and judge every caption by every option; the options come back with their measured costs.

    Picture k of caption i has the same noise under all options. A chunk's pictures are drawn alone, so a run that
    was killed and goes on scores as one that was not.

    Args:
        models: by the names that the options have. pictures: of each caption and option.
        unit: of the costs: "evaluations", the samples that go through the network for one picture, two an evaluation
            under guidance, and what a cache left out taken off; or "seconds", measured, the median of the chunks.
        folder: where what is done is kept, and found again.
        advance: called after each part: `parts(options, captions)` of them.

    Raises:
        ValueError: an unknown unit or model, no captions or options, a folder with the scores of another run.
    """
    if unit not in UNITS or not captions or not options:
        raise ValueError(f"unit is 'evaluations' or 'seconds', got {unit!r}, of at least one caption and option")
    check_whole("pictures", pictures)
    for option in options:
        if option.model not in models:
            raise ValueError(f"the option {option} is of none of the models {', '.join(models)}")
    asked = {
        "format": FORMAT,
        "captions": list(captions),
        "options": [{key: value for key, value in asdict(option).items() if key != "cost"} for option in options],
        "pictures": pictures,
        "seed": seed,
    }
    path = None if folder is None else Path(folder)
    done = {} if path is None else _begun(path, asked)
    for number, option in enumerate(options):
        names = [f"{number}.{first}" for first in range(0, len(captions), CHUNK)]
        made: tuple[Denoiser, Sampler] | None = None
        for name, first in zip(names, range(0, len(captions), CHUNK), strict=True):
            if name not in done:
                made = made or _opened(models[option.model], option)
                done[name] = _chunk(made, captions[first : first + CHUNK], first, pictures, seed, judge)
                if path is not None:
                    _keep(path, done)
            if advance is not None:
                advance()
    columns = [
        [done[f"{number}.{first}"] for first in range(0, len(captions), CHUNK)] for number in range(len(options))
    ]
    quality = torch.stack([torch.cat([part[: -len(UNITS)] for part in column]) for column in columns], dim=1)
    costs = [torch.stack([part[-len(UNITS) :] for part in column]).median(0).values for column in columns]
    place = UNITS.index(unit)
    priced = tuple(replace(option, cost=float(cost[place])) for option, cost in zip(options, costs, strict=True))
    return Scores(tuple(captions), priced, quality, unit)


def parts(options: Sequence[Option], captions: Sequence[str]) -> int:
    """How many parts a table is scored in."""
    return len(options) * -(-len(captions) // CHUNK)


def _opened(model: Denoiser, option: Option) -> tuple[Denoiser, Sampler]:
    guided = model if option.guidance is None else guide(model, "cfg", scale=option.guidance)
    return guided, choose_plan(guided, option.steps, option.nfe, option.solver)


def _chunk(
    made: tuple[Denoiser, Sampler], captions: Sequence[str], first: int, pictures: int, seed: int, judge: Judge
) -> Tensor:
    """Mean qualities (n,) of n captions, the first of which has this number, then a picture's cost by each unit."""
    model, plan = made
    every = [caption for caption in captions for _ in range(pictures)]
    noise, shape = Noise(seed, first * pictures), model.shape
    if shape is None:
        raise ValueError("this model takes any shape: its pictures cannot be scored without saying which")
    start = model.process.start(lambda draw: noise.normal(draw, (len(every), *shape), model.device, torch.float32))
    begin = time.perf_counter()
    result = plan.run(model, start, seed=seed, first=first * pictures, text=every)
    drawn = model.decode(result.samples)
    seconds = (time.perf_counter() - begin) / len(every)
    # A cache's cost is in whole evaluations of one branch, of which the rows count each.
    done = float(result.report["rows"]) * result.report.get("cost", result.nfe) / result.nfe
    found = judge(drawn, every)
    if found.shape != (len(every),) or not bool(((found >= 0) & (found <= 1)).all()):
        raise ValueError(f"a judge gives one number in [0, 1] for each of {len(every)} pictures, got {found}"[:200])
    quality = found.double().cpu().view(len(captions), pictures).mean(1)
    return torch.cat((quality, torch.tensor([done, seconds], dtype=torch.float64)))


def _begun(path: Path, asked: dict[str, Any]) -> dict[str, Tensor]:
    """What a run of these settings has scored so far; the folder is made where there is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; name a folder")
    if not (path / FACTS).is_file():
        if path.is_dir() and any(path.iterdir()):
            raise ValueError(f"the folder {path} is not empty, and holds no scores: choose another")
        path.mkdir(parents=True, exist_ok=True)
        write(path / FACTS, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")
        return {}
    try:
        there = json.loads(read_text(path / FACTS))
        parts = load((path / TENSORS).read_bytes()) if (path / TENSORS).is_file() else {}
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"the scores in {path} are damaged ({error}): remove the folder to begin anew") from None
    other = [key for key in asked if not isinstance(there, dict) or there.get(key) != asked[key]]
    if other:
        raise ValueError(f"{path} holds the scores of other {', '.join(other)}: choose another folder, or remove it")
    return parts


def _keep(path: Path, parts: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    write(path / TENSORS, save(dict(parts)))
