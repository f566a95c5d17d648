"""Every method of distillation beside a bare loop of the same losses: CPU time an iteration, and tensors in memory.

Both draw the same and call the same losses. The loop by hand has AdamW, clipping and a moving average and nothing else:
no generators by iteration, records, counts of turns, checks of what is finite. The teacher is the embedded digits
model; methods have their own defaults, but few pairs. Those for clips are left out.
"""

from __future__ import annotations

import copy
import gc
import inspect
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fewstep.core.methods import Method, made, methods
from fewstep.core.student import default_start
from fewstep.distillation.method import Distiller, Setting
from fewstep.distillation.state import DistillState
from fewstep.hub.models import load
from fewstep.searching.problem import own_data

ROUNDS, STEPS, BATCH, LR = 7, 4, 32, 1e-4
# Pairs are made before the first iteration, which is not measured.
GIVEN = {"pairs": 64, "plan": "ddim", "reward": "digit", "kind": "jump"}
ITERATIONS = 4 * ROUNDS * STEPS  # of the schedules; what is measured lies in their second quarter
BEGIN = ITERATIONS // 4


def work(method: Method, teacher: Any, **changes: Any) -> Distiller:
    """The method at work on a student of the teacher's."""
    steps = 1 if method.facts["steps"] == 1 else int(method.facts.get("benchmark_steps", 1))
    start = default_start(teacher.process, teacher.facts.data_std or 0.5)
    setting = Setting(
        teacher, teacher, start, steps, ITERATIONS, None, lambda: own_data(teacher), teacher.facts.data_std or 0.5,
        lr=LR, batch=BATCH, **changes,
    )  # fmt: skip
    taken = inspect.signature(method.load()).parameters
    options = {name: value for name, value in GIVEN.items() if name in taken}
    torch.manual_seed(0)
    built: Distiller = made("distiller", method.name, 1, **options)(setting)
    setting.step = BEGIN
    return built


class Bare:
    """What one writes by hand around the losses of a method."""

    def __init__(self, method: Distiller) -> None:
        self.method, self.generator = method, torch.Generator().manual_seed(0)
        self.parts: list[tuple[Any, list[nn.Parameter], torch.optim.AdamW, list[torch.Tensor]]] = []
        for player in method.players.values():
            weights = player.parameters
            optimizer = torch.optim.AdamW(weights, lr=LR, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
            # The player's own memory for it, from which methods of stages take their averaged student.
            average = list(player.average.average.values()) if player.average is not None else []
            self.parts.append((player, weights, optimizer, average))
            player.optimizer = None  # type: ignore[assignment]

    def run(self, steps: int) -> None:
        setting = self.method.setting
        for _ in range(steps):
            drawn = setting.mine(self.method.draw(BATCH, self.generator))
            for player, weights, optimizer, average in self.parts:
                if (setting.step + 1) % player.every:
                    continue
                losses = player.loss(drawn)
                if player.backward is None:
                    losses.mean().backward(inputs=weights)
                else:
                    player.backward(losses, drawn, weights)
                nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if average:
                    with torch.no_grad():
                        torch._foreach_lerp_(average, weights, 0.01)
            setting.step += 1


def alive() -> dict[int, int]:
    """Bytes of every piece of memory behind a tensor of this process, by its address."""
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def _milliseconds(run: Callable[[], None]) -> float:
    begin = time.process_time()
    run()
    return 1e3 * (time.process_time() - begin) / STEPS


def measured(method: Method, teacher: Any, **changes: Any) -> dict[str, Any]:
    """The least milliseconds of CPU time an iteration of both, the median of their ratio, and MB held by both."""
    kept: list[float] = []
    runs: list[Callable[[], None]] = []
    work(method, teacher, **changes)  # what is opened or tabulated once, is
    for by_hand in (False, True):
        gc.collect()
        before = alive()
        own = work(method, teacher, **changes)
        if by_hand:
            bare = Bare(own)
            runs.append(lambda bare=bare: bare.run(STEPS))  # type: ignore[misc]
        else:
            state = DistillState(own, {}, seed=0, batch=BATCH, accelerator=None)
            state.step = BEGIN
            runs.append(lambda state=state: state.run(state.step + STEPS))  # type: ignore[misc]
        runs[-1]()
        gc.collect()
        kept.append(sum(size for place, size in alive().items() if place not in before) / 1e6)
    pairs = [(_milliseconds(runs[0]), _milliseconds(runs[1])) for _ in range(ROUNDS)]
    ours, theirs = (min(pair[side] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(a / b for a, b in pairs)
    return {"ours_ms": ours, "bare_ms": theirs, "ratio": ratio, "ours_mb": kept[0], "bare_mb": kept[1]}


def measurable() -> list[Method]:
    """All methods but those for clips."""
    return [method for method in methods("distiller") if not method.facts.get("clips")]


def measure() -> list[dict[str, Any]]:
    """A row a method, and some again with adapters."""
    torch.set_num_threads(1)
    teacher = load("digits").requires_grad_(False)
    rows = []
    for method in measurable():
        rows.append({"method": method.name} | measured(method, copy.deepcopy(teacher)))
    for name in ("kd", "lcm", "ctm"):
        method = next(each for each in methods("distiller") if each.name == name)
        rows.append({"method": f"{name}, lora=8"} | measured(method, copy.deepcopy(teacher), lora=8))
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """The section of RESULTS.md."""
    lines = ["| method | ms | bare loop, ms | ratio | MB | bare loop, MB |", "|---|---|---|---|---|---|"]
    for row in rows:
        times = f"{row['ours_ms']:.1f} | {row['bare_ms']:.1f} | {row['ratio']:.3f}"
        lines.append(f"| {row['method']} | {times} | {row['ours_mb']:.2f} | {row['bare_mb']:.2f} |")
    return (
        "## Distillation beside a bare loop\n\nMilliseconds of CPU time an iteration on the digits, batch"
        f" {BATCH}, one thread: each method as it trains, and its losses in a loop by hand with AdamW, clipping and a"
        f" moving average; the least of {ROUNDS} rounds in which the two take turns, and the median of their ratio."
        " Memory is that of all tensors between two iterations, beside the teacher's own.\n\n" + "\n".join(lines)
    )
