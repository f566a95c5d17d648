"""A plan inside a diffusers pipeline: `pipe.scheduler = plan.as_diffusers_scheduler(like=pipe.scheduler)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fewstep.core.methods import Method
from fewstep.core.ops import told
from fewstep.core.plan import Plan
from fewstep.core.process import process_from_config
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow

if TYPE_CHECKING:
    from fewstep.hub.plan_scheduler import PlanScheduler

METHODS = (
    Method(
        "diffusers-scheduler",
        kind="export",
        claim="any plan, learned ones too, as the scheduler of a diffusers pipeline",
        use="as_diffusers_scheduler",
    ),
)

# The network receives 1000 sigma in every flow pipeline, unless its scheduler says otherwise.
FLOW_SCALE = 1000


def as_diffusers_scheduler(plan: Plan, like: Any = None) -> PlanScheduler:
    """The plan as a diffusers scheduler.

    Args:
        like: the pipeline's present scheduler. What the network predicts is read off it, and its noise levels are
            compared with those of the plan's process. Without it the network predicts eps under a `Discrete` process,
            and `eps - x0` under `Flow`. Further keys of its configuration are kept, for `from_config` of another class.

    Raises:
        ImportError: without diffusers.
        ValueError: a process for which diffusers has no network time, noise levels other than the pipeline's, a plan
            with no table (adaptive solvers, bands of noise levels), or with numbers for the network (`to`, `guidance`)
            or draws for it (`latent`).
    """
    if names := [name for op in plan.table.evaluations for name in told(op)]:  # a plan without a table says so
        raise ValueError(
            f"the plan gives the network {names[0]!r} at its evaluations, and a diffusers pipeline passes nothing on"
        )
    process = process_from_config(dict(plan.process))
    if not isinstance(process, Discrete | Flow):
        raise ValueError(
            f"a diffusers pipeline runs under a table of noise levels ('discrete') or a flow ('flow'), but this plan"
            f" was made for {process.name!r}"
        )
    flow = isinstance(process, Flow)
    kind = "flow_prediction" if flow else "epsilon"
    scale = FLOW_SCALE if isinstance(process, Flow) else process.table_steps
    if like is not None:
        kind, scale = _read(like, process)
    try:
        from fewstep.hub.plan_scheduler import PlanScheduler
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "diffusers":
            raise
        raise ImportError("a diffusers scheduler needs diffusers: pip install 'fewstep[diffusers]'") from None
    made = PlanScheduler(plan.to_json(), prediction_type=kind, num_train_timesteps=scale)
    if like is not None:  # its spacing and further keys, for a class that is made from this configuration
        own = {key: value for key, value in like.config.items() if not key.startswith("_")}
        made.register_to_config(**{key: value for key, value in own.items() if key not in made.config})
    return made


def _read(like: Any, process: Discrete | Flow) -> tuple[str, int]:
    """What the network predicts, and the scale of its time, from a scheduler; `ValueError` unless it fits."""
    name, config = type(like).__name__, getattr(like, "config", None)
    if config is None or not hasattr(like, "set_timesteps"):
        raise ValueError(f"like must be the pipeline's scheduler, got {name}")
    kind = config.get("prediction_type")
    table = getattr(like, "alphas_cumprod", None)
    flow = kind == "flow_prediction" or bool(config.get("use_flow_sigmas")) or (kind is None and table is None)
    if isinstance(process, Flow):
        if not flow:
            raise ValueError(
                f"the plan was made for a flow, but {name} predicts {kind!r} under a table of noise levels"
            )
        return "flow_prediction", int(config.get("num_train_timesteps") or FLOW_SCALE)
    if flow or table is None:
        raise ValueError(f"the plan was made for a table of noise levels, but {name} has none: it runs a flow")
    own = torch.tensor(process.alphas_cumprod, dtype=torch.float64)
    theirs = table.detach().to("cpu", torch.float64)
    if theirs.shape != own.shape:
        raise ValueError(f"the plan's table has {len(own)} steps, that of {name} {len(theirs)}")
    # Theirs is a product in float32, in which a last step of pure noise may be a tiny number.
    off = (theirs - own).abs() - 1e-4 * own
    if float(off.max()) > 1e-5:
        step = int(off.argmax())
        raise ValueError(
            f"the plan was made for other noise levels than {name} has: alphas_cumprod[{step}] is {own[step]:.6g} in"
            f" the plan's process and {theirs[step]:.6g} there"
        )
    return kind or "epsilon", len(own)
