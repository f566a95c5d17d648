"""What is written into a served picture: the parameters that made it, and the command that makes it again."""

from __future__ import annotations

import shlex
from typing import Any

from fewstep import __version__
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import VERSION
from fewstep.core.sampler import Sampler
from fewstep.serving.served import Wanted

OPTIONS = ("guidance", "negative", "solver", "steps", "timesteps", "nfe", "strength")  # as the command line has them


def facts(model: str, base: Denoiser, plan: Sampler, wanted: Wanted) -> dict[str, Any]:
    """The parameters of a request's pictures, by the names that `fewstep sample` gives them."""
    found: dict[str, Any] = {
        "fewstep": __version__,
        "command": command(model, wanted),
        "model": model,
        "solver": plan.name,
        "timesteps": plan.about.get("timesteps"),
        "steps": plan.about.get("steps"),
        "end": plan.about.get("end"),
        "nfe": plan.nfe,
        "n": wanted.n,
        "noise_version": VERSION,
        "label": wanted.label,
        "prompt": wanted.text,
        "guidance": wanted.guidance,
        "device": str(base.device),
        "dtype": str(base.dtype).removeprefix("torch."),
    }
    found |= {"negative": wanted.negative} if wanted.negative else {}
    found |= {"strength": wanted.strength} if wanted.strength is not None else {}
    return found | ({"plan": wanted.plan.to_json()} if wanted.plan is not None else {})


def command(model: str, wanted: Wanted) -> str:
    """The command line that draws the same samples; what was sent as a picture or a plan is named as a file."""
    words = ["fewstep", "sample", model]
    if len({seed for seed, _ in wanted.seeds}) == 1 and [i for _, i in wanted.seeds] == list(range(wanted.n)):
        words += ["-n", str(wanted.n), "--seed", str(wanted.seeds[0][0])]
    else:
        words += ["--seeds", *(str(seed) for seed, _ in wanted.seeds)]
    if isinstance(wanted.label, int):
        words += ["--label", str(wanted.label)]
    words += ["--prompt", wanted.text] if wanted.text else []
    for name in OPTIONS:
        if (value := getattr(wanted, name)) is not None:
            words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    words += ["--init", "init.png"] if wanted.init is not None else []
    words += ["--mask", "mask.png"] if wanted.mask is not None else []
    words += ["--plan", "plan.json"] if wanted.plan is not None else []
    return shlex.join([*words, "--out", "pictures"])
