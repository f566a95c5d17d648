"""MSD: several students of distribution matching, each for a part of the conditions, and so each may be smaller."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.label import Label
from fewstep.conditions.text import Text
from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method, made
from fewstep.data.dataset import Dataset
from fewstep.denoisers.by_condition import ByCondition, check_parts, nearest, word_counts
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.adapter import load_trained, trained
from fewstep.distillation.distances import squared
from fewstep.distillation.distribution_matching import CLASSIFY, DMD2, REAL
from fewstep.distillation.given import rows_with
from fewstep.distillation.matching import Matching, along
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.scale.decentralized import clusters

METHODS = (
    Method(
        "msd",
        paper="Multi-student Diffusion Distillation for Better One-step Generators (Song et al., 2024)",
        arxiv="2410.23274",
        claim="a student for each part of the conditions: more weights at the cost of one, or smaller ones",
        use="MultiStudent",
        facts={
            "student": "jump",
            "data": True,
            "pairing": False,
            "players": ("fake", "student"),
            "steps": "any",
            "lora": False,  # they have weights of their own
            "small": {"parts": [[0, 2], [1]], "ratio": 2, "warm": 0.3},
        },
    ),
)

WARM, JUDGED = 0.2, 0.5  # shares of the iterations: of a smaller student's first ones, and before the discriminator
ROWS = 4096  # of the data, by which conditions are parted


class Staged(DMD2):
    """`dmd2` in stages: "warm", when the student learns the teacher's answers; "matched", without the discriminator;
    "judged", which is all of it. What has no part in a stage has gradients of zero."""

    stage = "judged"

    def _fake_loss(self, drawn: Batch) -> Tensor:
        return _still(drawn, self.fake, self.discriminator) if self.stage == "warm" else super()._fake_loss(drawn)

    def fake_loss(self, x: Tensor, drawn: Batch) -> Tensor:
        if self.stage == "judged":
            return super().fake_loss(x, drawn)
        return Matching.fake_loss(self, x, drawn) + _still(drawn, self.discriminator)

    def _loss(self, drawn: Batch) -> Tensor:
        return self.regression(drawn) if self.stage == "warm" else super()._loss(drawn)

    def loss(self, x: Tensor, drawn: Batch) -> Tensor:
        return super().loss(x, drawn) if self.stage == "judged" else along(x, self.direction(x, drawn))

    def regression(self, drawn: Batch) -> Tensor:
        """The squared difference (B,) of the student's x0 and the teacher's at diffused real samples."""
        t, condition = drawn["t"], drawn["condition"]
        x_t = self.setting.noised(drawn["x0"], drawn["eps"], t)
        with torch.no_grad():
            wanted = self.teacher(x_t, t, **condition).x0
        return squared(self.setting.counted(self.student)(x_t, t, **condition).x0, wanted)


def _still(drawn: Batch, *modules: nn.Module | None) -> Tensor:
    """Zeros (B,) with gradients of zero: processes average the gradients of all parameters in one piece."""
    weights = [p.sum() for module in modules if module is not None for p in module.parameters() if p.requires_grad]
    return drawn["eps"].new_zeros(len(drawn["eps"])) + 0 * sum(weights)


class MultiStudent(Distiller):
    """A student for each part of the conditions, by `dmd2` on that part's data alone, without a discriminator at first.

    Every student has a fake score and heads of its own, an equal share of each batch, and no weight in common with the
    others; together they are one `ByCondition`, which asks one of them for each row. Smaller students, which cannot
    begin as the teacher, first learn its answers at diffused real samples of their part (the paper's score matching).

    Args:
        parts: lists of classes, which together are all of them; or how many, by k-means of the classes' mean pictures,
            or for a model of captions of their words. network: options of the students' networks in place of the
            teacher's, such as a smaller width; None for its copies. warm: share of the iterations in which they learn
            its answers, by default 0.2 of those of smaller ones. judged: share before the discriminator joins in.
        ratio, gan, classify, features, adversarial, fake: as `DMD2`.

    Raises:
        ValueError: parts that leave a class out or name one twice, fewer than two conditions a model has to part, a
            number of parts outside 1 to that of the conditions; an option that the network does not have, a teacher
            whose network is none of ours for other ones; shares outside 0 to 1; `lora`, and what `DMD2` raises.
    """

    kind = "jump"

    def __init__(
        self, setting: Setting, parts: int | Sequence[Sequence[int]] = 2, network: Mapping[str, Any] | None = None,
        warm: float | None = None, judged: float = JUDGED, ratio: int = 5, gan: float = REAL,
        classify: float = CLASSIFY, features: Sequence[str] | None = None, adversarial: str = "non-saturating",
        fake: str = "copy",
    ) -> None:  # fmt: skip
        warm = (WARM if network else 0.0) if warm is None else warm
        if not 0 <= warm <= judged <= 1:
            raise ValueError(f"warm and judged are shares from 0 to 1, the first no larger, got {warm} and {judged}")
        if setting.lora is not None:
            raise ValueError("several students have weights of their own: leave lora out")
        self.setting, self.warm, self.joins = setting, warm, judged
        self.parting = Parting(setting, parts)
        if setting.batch // setting.share[1] < len(self.parting.given):
            raise ValueError(
                f"a batch (of each process) has at least one sample for each of the {len(self.parting.given)} students,"
                f" got {setting.batch // setting.share[1]}"
            )
        options: dict[str, Any] = {"ratio": ratio, "gan": gan, "classify": classify, "features": features}
        options |= {"adversarial": adversarial, "fake": fake}
        self.methods = [
            Staged(self._own(number, network), **options) for number in range(len(self.parting.given))
        ]  # fmt: skip
        self.student = self.parting.joined([method.student for method in self.methods])
        if setting.first:
            load_trained(trained(self.student), setting.first)
        beside = nn.ModuleList(
            nn.ModuleList(part for part in (method.fake, method.discriminator) if part is not None)
            for method in self.methods
        )
        make = self.methods[0].player
        self.players = {
            "fake": make(beside, self._every("_fake_loss"), lr=setting.fake_lr),
            "student": make(self.student, self._every("_loss"), every=ratio, average=True),
        }
        for method in self.methods:
            method.players.clear()  # with averages that nobody needs

    def _own(self, number: int, network: Mapping[str, Any] | None) -> Setting:
        """A part's setting: its conditions and data, and a network to begin with."""
        part = copy.copy(self.setting)  # counts and claims go on in it
        part.given, part._rows = self.parting.given[number], self.parting.rows[number]
        part.seed, part.first = self.setting.seed + number, {}
        if network is not None:
            part.fake = self.setting.fake or self.setting.base
            part.base, part.own = smaller(self.setting.base, network), True
        elif part.own:
            part.base = copy.deepcopy(self.setting.base)
        return part

    def _every(self, name: str) -> Callable[[Batch], Tensor]:
        """The losses of all students, one after another."""

        def loss(drawn: Batch) -> Tensor:
            stage = self.stage
            found = []
            for number, method in enumerate(self.methods):
                method.stage = stage
                found.append(getattr(method, name)(drawn[str(number)]))
            return torch.cat(found)

        return loss

    @property
    def stage(self) -> str:
        """That of iteration `setting.step`."""
        done = self.setting.step / self.setting.iterations
        return "warm" if done < self.warm else "matched" if done < self.joins else "judged"

    def times(self) -> tuple[float, ...]:
        return self.methods[0].times()

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        count = len(self.methods)
        drawn: Batch = {}
        for number, method in enumerate(self.methods):
            size = max(1, batch // count + (number < batch % count))
            own = method.draw(size, generator)
            if self.warm and "x0" not in own:
                own["x0"], own["condition"] = method.setting.real(size, generator)
            drawn[str(number)] = own
        return drawn


class Parting:
    """The parts of the conditions: `given`, those to draw of each part, by name, and the `rows` of the data that are
    chosen already (None where the labels choose them)."""

    def __init__(self, setting: Setting, parts: int | Sequence[Sequence[int]]) -> None:
        found: dict[type, tuple[str, Any]] = {type(v): (name, v) for name, v in setting.base.conditions.items()}
        self.parts: list[list[int]] | None = None
        self.centres: Tensor | None = None
        self.rows: list[Tensor | None]
        if Label in found:
            name, label = found[Label]
            if isinstance(parts, int):
                parts = self._classes(setting, parts, label.classes)
            self.parts = [list(part) for part in parts]
            check_parts(self.parts, label.classes)
            self.given = [{name: torch.tensor(self._asked(setting, name, part))} for part in self.parts]
            self.rows = [None] * len(self.parts)
            return
        if Text not in found or not isinstance(parts, int):
            what = "is conditioned on neither label nor caption" if Text not in found else "has captions and no classes"
            raise ValueError(f"several students share out classes, and this model {what}: parts is {shown(parts)}")
        name, text = found[Text]
        data = setting.opened()
        rows = rows_with(data, setting.given) if setting.given else _some(data)
        captions = data.batch(rows)[1][name]
        counts = word_counts(captions, len(text.vocabulary))
        _check_count(parts, len(counts.unique(dim=0)), "different captions")
        which = clusters(counts, parts, _as_they_are, setting.seed).of
        self.centres = torch.stack([counts[which == number].mean(0) for number in range(parts)])
        which = nearest(counts, self.centres)  # as they are routed
        self.rows = [rows[which == number] for number in range(parts)]
        self.given = [{name: captions[which == number]} for number in range(parts)]

    @staticmethod
    def _classes(setting: Setting, count: int, classes: int) -> list[list[int]]:
        """So many parts of the classes, by k-means of their mean pictures."""
        _check_count(count, classes, "classes")
        images, named = setting.opened().batch(_some(setting.opened()))
        labels = named["label"]
        if lost := [label for label in range(classes) if not bool((labels == label).any())]:
            raise ValueError(f"the data have no picture of class {lost[0]}: give the parts as lists of classes")
        means = torch.stack([images[labels == label].mean(0) for label in range(classes)])
        which = clusters(means, count, seed=setting.seed).of.tolist()
        return [[label for label in range(classes) if which[label] == number] for number in range(count)]

    @staticmethod
    def _asked(setting: Setting, name: str, part: Sequence[int]) -> list[int]:
        """The classes of a part, those that are asked for where some are."""
        wanted = part if name not in setting.given else [k for k in part if bool((setting.given[name] == k).any())]
        if not wanted:
            raise ValueError(f"none of the conditions asked for is among the classes {list(part)} of a student")
        return list(wanted)

    def joined(self, students: Sequence[Denoiser]) -> ByCondition:
        """All of them as one."""
        return ByCondition(students, self.parts, self.centres)


def _some(data: Dataset) -> Tensor:
    """Rows from all over the data, which may be in the order of their labels."""
    return torch.linspace(0, len(data) - 1, min(len(data), ROWS), dtype=torch.float64).long()


def _as_they_are(rows: Tensor) -> Tensor:
    return rows


def _check_count(count: int, most: int, what: str) -> None:
    if isinstance(count, bool) or not 1 <= count <= most:
        raise ValueError(f"parts must be 1 to {most}, the number of {what}, got {count}")


def smaller(base: Denoiser, options: Mapping[str, Any]) -> NetworkDenoiser:
    """A denoiser like the base around a fresh network, with some of its options different.

    Raises:
        ValueError: an option that the network does not have, or a base whose network is none of ours.
    """
    own = getattr(getattr(base, "network", None), "config", None)
    if not isinstance(base, NetworkDenoiser) or not callable(own):
        raise ValueError("students of another size need a teacher with a network of ours")
    known = dict(own())
    network = made("network", known.pop("network"), **(known | dict(options)))()
    return type(base)(**(base.config() | {"network": network.to(base.device, base.dtype)}))
