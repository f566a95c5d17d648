"""Weights, gradients, moments and averages in shards over the processes (FSDP), and the whole tensors that files hold.

`accelerate launch --use_fsdp` asks for it. The sharding is torch's own (`fully_shard`), so that it is the same on GPUs
and on CPUs; a run's checkpoints and model are whole tensors, those of any other run: it resumes with any number of
processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def asked(accelerator: Any) -> bool:
    """Whether this run is to be sharded: asked for, and on more than one process."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and accelerator.num_processes > 1


def shard(objective: nn.Module, network: nn.Module, accelerator: Any) -> nn.Module:
    """The objective, on the device, its parameters in shards: those of each block of the network are gathered for that
    block alone, all others for the whole pass.

    Raises:
        ValueError: a torch without `fully_shard` (before 2.6).
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise ValueError(f"sharded training needs torch 2.6 or later, this is {torch.__version__}") from None
    device = accelerator.device.type
    mesh = init_device_mesh(device, (accelerator.num_processes,))
    objective.to(accelerator.device)
    blocks: Mapping[str, nn.Module] = getattr(network, "blocks", {})  # type: ignore[assignment]
    for block in blocks.values():
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return objective


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor that may be in shards; every process has to ask."""
    full = getattr(value, "full_tensor", None)
    found: Tensor = value if full is None else full()
    return found


def like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor in shards like those of another, where that is in shards and of its shape.

    Every process has the whole and takes its own part: nothing is sent.
    """
    if not hasattr(other, "full_tensor") or value.shape != other.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = other.device_mesh, other.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(other.device), mesh, placements, src_data_rank=None)


def as_in(tensors: Mapping[str, Tensor], module: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in shards like those of the same names; of moments, "weight/exp_avg", like "weight"."""
    found = {}
    for name, value in tensors.items():
        other = module.get(name.partition("/")[0])
        found[name] = value if other is None else like(value, other)
    return found
