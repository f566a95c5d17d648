"""Claims of fewstep/training/trainer.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor

from claims.common import Claim, Outcome, compared
from claims.short_run import advance, recipe, start
from fewstep.training.checkpoint import checkpoints, load_checkpoint, part
from fewstep.training.state import TrainingState
from fewstep.training.trainer import train

UNIT = "largest difference of a weight"


def _saved(out: Path) -> dict[str, Tensor]:
    tensors, _ = load_checkpoint(checkpoints(out)[-1])
    return part(tensors, "network")


def _weights(state: TrainingState) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in state.network.state_dict().items()}


def _difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def _resume(seed: int) -> Outcome:
    """Twenty steps at once, ten and ten, and ten with ten more that take over the weights alone."""
    made = recipe("unet", seed, batch=16, steps=20, warmup=5, validate_every=0)
    with tempfile.TemporaryDirectory() as folder:
        whole, halves = Path(folder) / "whole", Path(folder) / "halves"
        train(made, whole, device="cpu", progress=False)
        train(made, halves, device="cpu", progress=False, steps=10)
        state = start(made)
        state.network.load_state_dict(_saved(halves))
        train(made, halves, device="cpu", progress=False, resume=True)
        straight, resumed = _saved(whole), _saved(halves)
    advance(state, 10)
    figures = _difference(resumed, straight), _difference(_weights(state), straight)
    about = "unet on digits, 20 steps of 16, stopped and resumed after 10"
    return compared(figures, "a run that goes on from the weights alone", about, unit=UNIT)


def _same_seed(seed: int) -> Outcome:
    runs = []
    for number in (seed, seed, seed + 1):
        state = start(recipe("unet", number, batch=16, steps=5, warmup=0, validate_every=0))
        advance(state, 5)
        runs.append(_weights(state))
    figures = _difference(runs[0], runs[1]), _difference(runs[0], runs[2])
    return compared(figures, "another seed", "unet on digits, 5 steps of 16", unit=UNIT)


CLAIMS = (
    Claim("trainer", "a stopped run, resumed, ends in the same bits", _resume, quick=False),
    Claim("trainer", "a seed gives the same bits again", _same_seed, quick=False),
)
