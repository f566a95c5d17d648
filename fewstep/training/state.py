"""The state of a training run and its one step: weights, average, optimiser, generators, position in the data."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.condition import Condition, Label, Picture
from fewstep.data.open import is_built_in, open_source
from fewstep.data.spec import Dataset
from fewstep.data.stream import Stream
from fewstep.denoisers.learned_variance import LearnedVariance
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.checkpoint import load_checkpoint, optimizer_tensors, part, restore_optimizer, save_checkpoint
from fewstep.training.draws import Draws
from fewstep.training.ema import EMA
from fewstep.training.importance import ImportanceLevels
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective
from fewstep.training.recipe import DataPart, Recipe, differences

# A resumed run may change these: they say how long and how often, not what a step does.
FREE = ("train.steps", "train.log_every", "train.save_every", "train.validate_every")
DECILES = 10
MEASURED = 2048  # samples of a stream that its standard deviation is measured on
VALIDATION_DRAWS = 2048  # at least so many (image, noise) pairs make the held-out loss


class TrainingState:
    """The state of a run and its single step. `train` surrounds it with folders, logs and signals.

    Seeds torch's global generator (for the weights, and in every step for dropout layers); `train` puts it back.
    """

    def __init__(self, recipe: Recipe, accelerator: Any) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        settings = recipe.train
        if settings.batch % accelerator.num_processes:
            raise ValueError(
                f"train.batch = {settings.batch} does not divide among {accelerator.num_processes} processes"
            )
        self.data = _open(recipe.data, "train")
        if recipe.data.labels and self.data.spec.classes is None:
            raise ValueError(f"data.labels = true, yet {recipe.data.source!r} comes without labels")
        if recipe.data.captions and self.data.spec.text is None:
            raise ValueError(f"data.captions = true, yet {recipe.data.source!r} comes without captions")
        if settings.condition_dropout and not (recipe.data.labels or recipe.data.captions):
            raise ValueError(
                "train.condition_dropout hides labels or captions: it needs data.labels or data.captions = true"
            )
        held = _open(recipe.data, "validation") if settings.validate_every else None
        assert not isinstance(held, Stream)
        self.held: Dataset | None = held
        self.levels: NoiseLevels = recipe.make_levels()
        torch.manual_seed(settings.seed)
        self.denoiser = _denoiser(recipe, self.data)
        self.objective = accelerator.prepare(recipe.make_objective(self.denoiser))
        self.network = self.denoiser.network
        self.optimizer = torch.optim.AdamW(
            _groups(self.network, settings.weight_decay), lr=settings.lr, betas=settings.betas, fused=True
        )
        self.ema = EMA(self.network, settings.ema)
        self.coupling = recipe.make_coupling()
        if accelerator.num_processes > 1 and isinstance(self.levels, ImportanceLevels):
            raise ValueError("noise_levels.importance learns from every loss: it trains in one process only")
        self.draws = Draws(settings.seed, len(self.data), recipe.data.share)
        self.step = 0
        # Sums since the last record, on the device, so that no step waits for it: steps, loss, gradient norm; then
        # loss and count of each decile of the noise levels.
        self.sums = torch.zeros(3 + 2 * DECILES, device=accelerator.device)
        self.first_bad = torch.full((), torch.iinfo(torch.int64).max, device=accelerator.device)

    def advance(self) -> None:
        """One step of the optimiser."""
        settings, device, rank = self.recipe.train, self.accelerator.device, self.accelerator.process_index
        share = settings.batch // self.accelerator.num_processes
        mine = slice(rank * share, (rank + 1) * share)
        x0, given = self._take(self.step * settings.batch, mine)
        eps = self.denoiser.process.eps(lambda: self.draws.normal(settings.batch, *x0.shape[1:]))[mine]
        if self.coupling is not None:  # within what this process trains on
            eps = self.coupling(x0, eps, self.draws.generators["noise"])
        quantile = self.draws.shares(settings.batch)[mine]
        hidden = self.draws.hidden(settings.batch, settings.condition_dropout)[mine]
        condition = self._condition(given, hidden)

        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        torch.manual_seed(self.draws.step_seed(self.step, rank))  # for dropout layers, which know no other generator
        t = self.levels.quantile(quantile).to(device)
        losses = self.objective(x0.to(device), eps.to(device), t, condition)
        if isinstance(self.levels, ImportanceLevels):
            self.accelerator.backward((losses * self.levels.weight(t).to(losses)).mean())
            self.levels.update(t, losses)
        else:
            self.accelerator.backward(losses.mean())
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.network)
        self.step += 1
        self._record(losses.detach(), norm, (quantile * DECILES).long().to(device))

    def _take(self, seen: int, mine: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's part of the batch that follows `seen` samples: images, and what goes with them."""
        if isinstance(self.data, Stream):  # in an order of its own, by the same number
            images, label = self.data.batch(seen + mine.start, mine.stop - mine.start)
            return images, {"label": label} if isinstance(label, Tensor) else {}
        return self.data.batch(self.draws.rows(seen, self.recipe.train.batch)[mine])

    def _condition(self, given: dict[str, Tensor], hidden: Tensor | None = None) -> dict[str, Tensor]:
        """What the denoiser is conditioned on, on the device, the hidden ones as empty."""
        condition = {}
        for name, kind in self.denoiser.conditions.items():
            value = given[name]
            if hidden is not None and not isinstance(kind, Picture):
                empty = kind.check(name, None, 1, value.device)
                value = torch.where(hidden.reshape(-1, *[1] * (value.ndim - 1)), empty, value)
            condition[name] = value.to(self.accelerator.device)
        return condition

    def _record(self, losses: Tensor, norm: Tensor, decile: Tensor) -> None:
        mean = losses.mean()
        self.sums[:3] += torch.stack([torch.ones_like(mean), mean, norm.to(mean)])
        self.sums[3 : 3 + DECILES].index_add_(0, decile, losses)
        self.sums[3 + DECILES :].index_add_(0, decile, torch.ones_like(losses))
        finite = mean.isfinite() & norm.isfinite()
        self.first_bad = torch.where(finite, self.first_bad, self.first_bad.clamp(max=self.step))

    def check_finite(self) -> None:
        """Raises FloatingPointError, naming the step, if a loss or gradient since the start was not finite."""
        bad = int(self.accelerator.gather(self.first_bad.view(1)).min())
        if bad <= self.step:
            raise FloatingPointError(
                f"the loss or its gradient was not finite at step {bad}: a lower train.lr, a longer warmup or a "
                "smaller train.clip may do; the checkpoints before it are untouched"
            )

    def means(self) -> dict[str, Any]:
        """Loss and gradient norm, averaged over the steps since `forget` and over all processes; nan if none."""
        sums = self.accelerator.reduce(self.sums, "sum").tolist()
        losses, counts = sums[3 : 3 + DECILES], sums[3 + DECILES :]
        deciles = [loss / count if count else None for loss, count in zip(losses, counts, strict=True)]
        steps = sums[0] or math.nan
        return {"loss": sums[1] / steps, "grad_norm": sums[2] / steps, "loss_by_noise_decile": deciles}

    def forget(self) -> None:
        """Starts the sums anew."""
        self.sums.zero_()

    @torch.no_grad()
    def validation_loss(self) -> float:
        """The loss of the averaged model on the held-out split: fixed noise, noise levels evenly over the quantiles."""
        assert self.held is not None
        objective, device = Objective(self.averaged()), self.accelerator.device
        repeats = math.ceil(VALIDATION_DRAWS / len(self.held))
        total, batch = len(self.held) * repeats, max(self.recipe.train.batch, 256)
        generator = torch.Generator().manual_seed(0)
        rows = torch.arange(total) % len(self.held)
        shares = (torch.randperm(total, generator=generator) + 0.5) / total
        summed = 0.0
        for start in range(0, total, batch):
            chosen = slice(start, start + batch)
            x0, given = self.held.batch(rows[chosen])
            eps = self.denoiser.process.eps(lambda x0=x0: torch.randn(x0.shape, generator=generator))  # type: ignore[misc]
            t = self.levels.quantile(shares[chosen]).to(device)
            summed += float(objective(x0.to(device), eps.to(device), t, self._condition(given)).sum())
        return summed / total

    def averaged(self) -> NetworkDenoiser:
        """A copy of the denoiser with the averaged weights, in evaluation mode."""
        model = copy.deepcopy(self.denoiser)
        self.ema.copy_to(model.network)
        return model.eval()

    def save(self, out: Path, elapsed: float) -> None:
        """Writes a checkpoint (the main process does). Raises FloatingPointError before it would hold bad weights."""
        self.check_finite()
        sums = self.accelerator.reduce(self.sums, "sum")
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.average.items()}
        moments = optimizer_tensors(self.network, self.optimizer)
        tensors |= {f"optimizer.{name}": value for name, value in moments.items()}
        tensors |= {f"generator.{name}": value for name, value in self.draws.state().items()}
        if isinstance(self.levels, ImportanceLevels):
            tensors |= {f"levels.{name}": value for name, value in self.levels.state().items()}
        facts = {
            "recipe": self.recipe.to_dict(),
            "samples": len(self.data),
            "seen": self.step * self.recipe.train.batch,
            "ema_updates": self.ema.updates,
            "elapsed": elapsed,
        }
        if self.accelerator.is_main_process:
            save_checkpoint(out, self.step, tensors | {"sums": sums}, facts)
        self.accelerator.wait_for_everyone()

    def restore(self, path: Path) -> float:
        """Takes the state from a checkpoint; returns the seconds spent before it.

        Raises ValueError for a damaged one, or one of another recipe or data set.
        """
        tensors, facts = load_checkpoint(path)
        found = differences(facts["recipe"], self.recipe.to_dict())
        if changed := [entry for entry in found if entry.split(" ")[0] not in FREE]:
            raise ValueError(f"the checkpoint {path} is of another recipe: {'; '.join(changed)}")
        if facts["samples"] != len(self.data):
            raise ValueError(
                f"the checkpoint {path} was trained on {facts['samples']} samples; "
                f"{self.recipe.data.source!r} has {len(self.data)} now"
            )
        self.network.load_state_dict(part(tensors, "network"))
        self.ema.load(part(tensors, "ema"), facts["ema_updates"])
        restore_optimizer(self.network, self.optimizer, part(tensors, "optimizer"))
        self.draws.restore(part(tensors, "generator"))
        if isinstance(self.levels, ImportanceLevels):
            self.levels.load(part(tensors, "levels"))
        self.step = facts["step"]
        if self.accelerator.is_main_process:  # the others' shares are in it already
            self.sums.copy_(tensors["sums"])
        return facts["elapsed"]


def _open(data: DataPart, split: str) -> Dataset | Stream:
    if ".tar" in data.source:
        if split != "train" or data.share != 1 or data.captions:
            what = "validate_every" if split != "train" else "share" if data.share != 1 else "captions"
            raise ValueError(f"a stream of shards is no place for {what}: it is read once, in order, for its pictures")
    return open_source(
        data.source,
        split=split,
        size=data.size,
        mode=data.mode,
        labels=data.labels,
        value_range=data.value_range,
        validation=data.validation,
        seed=data.seed,
    )


def _std(data: Dataset | Stream) -> float:
    if isinstance(data, Stream):
        return float(data.batch(0, min(len(data), MEASURED))[0].double().std(correction=0))
    return data.std()


def _denoiser(recipe: Recipe, data: Dataset | Stream) -> NetworkDenoiser:
    network, given = recipe.make_network(data.spec), recipe.denoiser
    measured = given.precondition == "edm" and given.data_std is None
    conditions: dict[str, Condition] = {}
    if recipe.data.labels and data.spec.classes:
        conditions["label"] = Label(data.spec.classes)
    if recipe.data.captions and data.spec.text is not None:
        conditions["text"] = data.spec.text
    made = LearnedVariance if given.learned_variance else NetworkDenoiser
    return made(
        network,
        recipe.make_process(),
        predicts=given.predicts,
        shape=data.spec.shape,
        conditions=conditions,
        precondition=given.precondition,
        data_std=_std(data) if measured else given.data_std or 1.0,
        value_range=data.spec.value_range,
        data=data.spec.name if is_built_in(data.spec.name) else None,
    )


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; biases and the scales of norms do not."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [entry for entry in parameters if entry.ndim > 1], "weight_decay": weight_decay},
        {"params": [entry for entry in parameters if entry.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
