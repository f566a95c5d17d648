"""The state of a training run and its one step: weights, average, optimiser, generators, position in the data."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.conditions.picture import Picture
from fewstep.conditions.time import Time
from fewstep.data.augment import Augment
from fewstep.data.dataset import Dataset
from fewstep.data.identity import identity
from fewstep.data.stream import Stream
from fewstep.denoisers.bridge import BridgeDenoiser
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.ambient import CONDITION, degrade
from fewstep.training.checkpoint import load_checkpoint, optimizer_tensors, part, restore_optimizer, save_checkpoint
from fewstep.training.importance import ImportanceLevels
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective
from fewstep.training.players import Moment, Player, optimise
from fewstep.training.recipe import Recipe, differences
from fewstep.training.sharded import as_in, asked, shard, whole
from fewstep.training.sources import make_denoiser, measurements, open_split

# A resumed run may change these: they set how long and how often, not what a step does.
FREE = ("train.steps", "train.log_every", "train.save_every", "train.validate_every")
DECILES = 10
AUGMENTS = 1 << 20  # a stream of chance beside those of the processes
VALIDATION_DRAWS = 2048  # (image, noise) pairs in the held-out loss, at least


class Drawn(NamedTuple):
    """A batch: samples and noise (B, *shape), times (B,), conditions, and the quantiles of the times."""

    x0: Tensor
    eps: Tensor
    t: Tensor
    condition: dict[str, Tensor]
    quantile: Tensor


class TrainingState:
    """The state of a run and its single step. `train` surrounds it with folders, logs and signals.

    Seeds torch's global generator (for the weights, and in every step for dropout layers); `train` restores it.
    """

    def __init__(self, recipe: Recipe, accelerator: Any) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        settings = recipe.train
        if settings.batch % (accelerator.num_processes * settings.accumulate):
            parts = f" in {settings.accumulate} parts each" if settings.accumulate > 1 else ""
            raise ValueError(
                f"train.batch = {settings.batch} does not divide among {accelerator.num_processes} processes{parts}"
            )
        self.augment = Augment(recipe.data.flip, recipe.data.crop)
        self.data = self._opened("train")
        self.identity = identity(self.data)
        if recipe.data.labels and self.data.spec.classes is None:
            raise ValueError(f"data.labels = true, yet {recipe.data.source!r} comes without labels")
        if recipe.data.captions and self.data.spec.text is None:
            raise ValueError(f"data.captions = true, yet {recipe.data.source!r} comes without captions")
        if settings.condition_dropout and not (recipe.data.labels or recipe.data.captions):
            raise ValueError(
                "train.condition_dropout hides labels or captions: it needs data.labels or data.captions = true"
            )
        held = self._opened("validation") if settings.validate_every else None
        assert not isinstance(held, Stream)
        self.held: Dataset | None = held
        self.levels: NoiseLevels = recipe.make_levels()
        torch.manual_seed(settings.seed)
        self.denoiser = make_denoiser(recipe, self.data)
        self.draws = recipe.make_draws(self.data)
        objective = recipe.make_objective(self.denoiser, self._example, self.levels)
        inner = next(module for module in objective.modules() if isinstance(module, Objective))
        self.terms, self.network = inner.modules_of_terms, self.denoiser.network
        self.sharded = asked(accelerator)
        if self.sharded and recipe.adapter is not None:
            raise ValueError("adapters are small, and train on whole models: leave sharding out")
        # What is in shards has no copy: the averaged model is made from one that is not.
        self.whole = copy.deepcopy(self.denoiser) if self.sharded else self.denoiser
        if self.sharded:
            self.objective = shard(objective, self.network, accelerator)
        else:
            self.objective = accelerator.prepare(objective)
        self.ema = recipe.make_average(self.network)
        self.scaler = torch.amp.GradScaler(accelerator.device.type) if settings.precision == "fp16" else None
        self.player = Player(
            self.network,
            self._losses,
            parameters=[*self.network.parameters(), *self.terms.parameters()],
            lr=settings.rate,
            betas=settings.betas,
            # Matrices and kernels decay; biases and the scales of norms do not.
            weight_decay=lambda parameter: settings.weight_decay if parameter.ndim > 1 else 0.0,
            clip=settings.clip,
            average=self.ema,
            backward=self._backward,
            scaler=self.scaler,
        )
        if self.sharded and self.scaler is not None:
            raise ValueError("sharded training takes precision bf16 or fp32: fp16 scales losses by whole gradients")
        self.coupling, self.backward = recipe.make_coupling(), recipe.make_backward()
        own_way = self.backward is not None or isinstance(self.levels, ImportanceLevels)
        if own_way and (settings.accumulate > 1 or self.scaler is not None):
            what = "[backward]" if self.backward is not None else "noise_levels.importance"
            raise ValueError(f"{what} takes the gradients itself: leave train.accumulate and precision fp16 out")
        if accelerator.num_processes > 1 and (self.backward is not None or isinstance(self.levels, ImportanceLevels)):
            what = "[backward]" if self.backward is not None else "noise_levels.importance"
            raise ValueError(f"{what} depends on every loss: it trains in one process only")
        self.step = 0
        # Sums since the last record, on the device, so that no step waits for it: steps, loss, gradient norm; then
        # loss and count of each decile of the noise levels.
        self.sums = torch.zeros(3 + 2 * DECILES, device=accelerator.device)
        self.first_bad = torch.full((), torch.iinfo(torch.int64).max, device=accelerator.device)

    def _opened(self, split: str) -> Dataset | Stream:
        """A split of the recipe's data, its pictures as large as they are trained on."""
        data = open_split(self.recipe.data, split)
        spec = replace(data.spec, shape=self.augment.shape(data.spec.shape, repr(self.recipe.data.source)))
        return replace(data, spec=spec) if self.augment.crop else data

    def run(self, last: int, watch: Callable[[], bool | None] | None = None) -> None:
        """Steps up to `last`; `watch` is called after each, and ends the run by returning True."""

        def watched(moment: Moment) -> bool | None:
            self.step = moment.step + 1
            decile = (moment.drawn.quantile * DECILES).long().to(self.accelerator.device)
            self._record(moment.losses["model"], whole(moment.norms["model"]), decile)
            return None if watch is None else watch()

        optimise(
            {"model": self.player},
            self._draw,
            steps=last,
            batch=self.recipe.train.batch,
            seed=self.draws.generators["noise"],
            first=self.step,
            watch=watched,
        )

    def advance(self) -> None:
        """One step of the optimiser."""
        self.run(self.step + 1)

    def _draw(self, batch: int, generator: torch.Generator) -> Drawn:
        """This process's part of the next batch. The whole batch is drawn, however many processes share it."""
        settings, device, rank = self.recipe.train, self.accelerator.device, self.accelerator.process_index
        share = batch // self.accelerator.num_processes
        mine = slice(rank * share, (rank + 1) * share)
        x0, given = self._take(self.step * batch, mine, self._chance(batch, mine))
        eps = self.denoiser.process.eps(lambda: self.draws.normal(batch, *x0.shape[1:]))[mine]
        if self.coupling is not None:  # within this process's part of the batch
            eps = self.coupling(x0, eps, generator)
        quantile = self.draws.shares(batch)[mine]
        hidden = self.draws.hidden(batch, settings.condition_dropout)[mine]
        condition = self._condition(given, hidden)
        if self.recipe.objective is not None:  # conditions for the objective, besides the denoiser's
            condition = {key: value.to(device) for key, value in given.items()} | condition
        torch.manual_seed(self.draws.step_seed(self.step, rank))  # for dropout layers, which know no other generator
        return Drawn(x0.to(device), eps.to(device), self.levels.quantile(quantile).to(device), condition, quantile)

    def _chance(self, batch: int, mine: slice) -> Tensor | None:
        """The chance (B, 3) of a step's augmentation: of seed and step alone, so that a resumed run has it too."""
        if not self.augment:
            return None
        generator = torch.Generator().manual_seed(self.draws.step_seed(self.step, AUGMENTS))
        return torch.rand(batch, 3, generator=generator)[mine]

    def _losses(self, drawn: Drawn) -> Tensor:
        if self.recipe.train.accumulate == 1:
            return self._forward(drawn, slice(None))
        # A part's graph is gone before the next part's is made, so its gradients are taken here.
        count, size = len(drawn.x0), len(drawn.x0) // self.recipe.train.accumulate
        losses = []
        for begin in range(0, count, size):
            last = begin + size == count
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
                part = self._forward(drawn, slice(begin, begin + size))
                self.accelerator.backward(self._scaled(part.sum() / count))
            losses.append(part.detach())
        return torch.cat(losses)

    def _forward(self, drawn: Drawn, rows: slice) -> Tensor:
        device = self.accelerator.device.type
        condition = {name: value[rows] for name, value in drawn.condition.items()}
        kind = torch.float16 if self.scaler is not None else None
        if self.sharded and self.recipe.train.precision == "bf16":  # else Accelerate has wrapped the pass
            kind = torch.bfloat16
        with torch.autocast(device, kind) if kind is not None else contextlib.nullcontext():
            losses = self.objective(drawn.x0[rows], drawn.eps[rows], drawn.t[rows], condition)
        return losses if kind is None else losses.float()

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def _backward(self, losses: Tensor, drawn: Drawn, parameters: Sequence[nn.Parameter]) -> None:
        if self.recipe.train.accumulate > 1:  # done with the losses
            return
        if isinstance(self.levels, ImportanceLevels):
            self.levels.backward(losses, drawn.t, parameters)
        elif self.backward is not None:
            self.backward(losses, drawn.t, parameters)
        else:
            self.accelerator.backward(self._scaled(losses.mean()))

    def _take(self, seen: int, mine: slice, chance: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's part of the batch after the first `seen` samples: images, and what goes with them. chance: by
        which they are augmented."""
        if isinstance(self.data, Stream):  # in its own order, by the same number
            images, label = self.data.batch(seen + mine.start, mine.stop - mine.start)
            images = self.augment(images, chance)
            return self._states(images, {"label": label} if isinstance(label, Tensor) else {}, seen + mine.start)
        rows = self.draws.rows(seen, self.recipe.train.batch)[mine]
        images, given = self.data.batch(rows)
        images = self.augment(images, chance)
        if self.recipe.data.noise:
            images, level = degrade(images, rows, self.recipe.data.clean, self.recipe.data.noise)
            given = given | {CONDITION: level}
        return self._states(images, given, seen + mine.start)

    def _states(
        self, images: Tensor, given: dict[str, Tensor], first: int, held: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Samples number `first` on, of the run or of its held-out ones, as the denoiser trains on them."""
        given = given | measurements(self.recipe, self.denoiser, images, first, held)
        if isinstance(self.denoiser, BridgeDenoiser):  # it takes data, and converts to its coordinates in the loss
            return images, given
        return self.denoiser.encode(images, **given), given

    def example(self, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The first samples, at most a batch of them, and what goes with them."""
        return self._take(0, slice(0, min(count, self.recipe.train.batch)))

    def _example(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Two samples and their conditions, where the weights are."""
        x0, given = self.example(2)
        device = next(self.denoiser.network.parameters()).device
        return x0.to(device), {name: value.to(device) for name, value in self._condition(given).items()}

    def _condition(self, given: dict[str, Tensor], hidden: Tensor | None = None) -> dict[str, Tensor]:
        """The denoiser's conditions, on the device, hidden ones at their empty values."""
        condition = {}
        for name, kind in self.denoiser.conditions.items():
            if isinstance(kind, Time):  # a flow map, which trains as the denoiser that it is at to = t
                continue
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
        if self.scaler is not None and self.scaler.get_scale() < 1:
            raise FloatingPointError(
                f"losses in half precision overflowed at every scale by step {self.step}: train in bf16 or fp32"
            )
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
        """Resets the sums."""
        self.sums.zero_()

    @torch.no_grad()
    def validation_loss(self) -> float:
        """The loss of the averaged model on the held-out split: fixed noise, noise levels even over the quantiles."""
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
            images, given = self.held.batch(rows[chosen])
            x0, given = self._states(self.augment(images), given, start, held=True)
            eps = self.denoiser.process.eps(lambda x0=x0: torch.randn(x0.shape, generator=generator))  # type: ignore[misc]
            t = self.levels.quantile(shares[chosen]).to(device)
            summed += float(objective(x0.to(device), eps.to(device), t, self._condition(given)).sum())
        return summed / total

    def averaged(self) -> NetworkDenoiser:
        """A copy of the denoiser with the averaged weights, in evaluation mode; sharded, every process has to ask."""
        model = copy.deepcopy(self.whole).to(self.accelerator.device)
        with torch.no_grad():
            for name, parameter in model.network.named_parameters():
                parameter.copy_(whole(self.ema.average[name]))
        return model.eval()

    def tensors(self) -> dict[str, Tensor]:
        """All that the next step depends on, besides the recipe and the number of steps done."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.average.items()}
        moments = optimizer_tensors(self.network, self.player.optimizer)
        tensors |= {f"optimizer.{name}": value for name, value in moments.items()}
        tensors |= {f"generator.{name}": value for name, value in self.draws.state().items()}
        if isinstance(self.levels, ImportanceLevels):
            tensors |= {f"levels.{name}": value for name, value in self.levels.state().items()}
        tensors |= {f"terms.{name}": value for name, value in self.terms.state_dict().items()}
        moments = optimizer_tensors(self.terms, self.player.optimizer)
        tensors |= {f"terms_optimizer.{name}": value for name, value in moments.items()}
        if self.scaler is not None:
            kept = self.scaler.state_dict()
            tensors["scaler"] = torch.tensor([kept["scale"], kept["_growth_tracker"]], dtype=torch.float64)
        if self.backward is not None:
            tensors |= {f"backward.{name}": value for name, value in self.backward.state().items()}
        # In one order for all processes: those of a restored optimiser come as each process read them.
        return {name: whole(tensors[name]) for name in sorted(tensors)}

    def save(self, out: Path, elapsed: float) -> None:
        """Writes a checkpoint (the main process does). Raises FloatingPointError rather than save bad weights."""
        self.check_finite()
        sums = self.accelerator.reduce(self.sums, "sum")
        tensors = self.tensors()
        facts = {
            "recipe": self.recipe.to_dict(),
            "samples": len(self.data),
            "data": self.identity,
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
        # Parsed again, so that a recipe saved before a key existed has it at its default.
        found = differences(Recipe.from_dict(facts["recipe"]).to_dict(), self.recipe.to_dict())
        if changed := [entry for entry in found if entry.split(" ")[0] not in FREE]:
            raise ValueError(f"the checkpoint {path} is of another recipe: {'; '.join(changed)}")
        if facts["samples"] != len(self.data):
            raise ValueError(
                f"the checkpoint {path} was trained on {facts['samples']} samples; "
                f"{self.recipe.data.source!r} has {len(self.data)} now"
            )
        if facts.get("data", self.identity) != self.identity:  # older checkpoints do not say
            raise ValueError(
                f"the pictures in {self.recipe.data.source!r} are not those that the checkpoint {path} was trained on:"
                " some were replaced, renamed or moved. Bring them back, or train anew in another folder"
            )
        weights, terms = dict(self.network.named_parameters()), dict(self.terms.named_parameters())
        self.network.load_state_dict(as_in(part(tensors, "network"), weights))
        self.ema.load(as_in(part(tensors, "ema"), self.ema.average), facts["ema_updates"])
        restore_optimizer(self.network, self.player.optimizer, as_in(part(tensors, "optimizer"), weights))
        self.draws.restore(part(tensors, "generator"))
        if isinstance(self.levels, ImportanceLevels):
            self.levels.load(part(tensors, "levels"))
        self.terms.load_state_dict(as_in(part(tensors, "terms"), terms))
        restore_optimizer(self.terms, self.player.optimizer, as_in(part(tensors, "terms_optimizer"), terms))
        if self.scaler is not None:
            scale, tracker = tensors["scaler"].tolist()
            kept = self.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)}
            self.scaler.load_state_dict(kept)
        if self.backward is not None:
            self.backward.load(part(tensors, "backward"))
        self.step = facts["step"]
        if self.accelerator.is_main_process:  # the sum already includes the other processes
            self.sums.copy_(tensors["sums"])
        return facts["elapsed"]
