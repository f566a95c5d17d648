"""Claims of sampling in shards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from claims.claim import Claim, Outcome, tolerance
from claims.common import sample
from fewstep.hub.models import load
from fewstep.scale.sampling import sample_shards
from fewstep.scale.shards import Event, Lost, Ready, Shard, Work, in_this_process

N, BATCH = 20, 4


def _disorder(seed: int) -> Outcome:
    """Shards drawn last to first by two workers, of which one dies, in two calls of which the first is stopped."""
    left = [3]  # shards until the first call stops

    def executor(work: Work, shards: Sequence[Shard]) -> Iterator[Event]:
        last = list(reversed(shards))
        yield Ready(work.open().about, "b")
        yield Lost(last[0], "killed", "b")
        for event in in_this_process(work, last):
            if not left[0]:
                raise InterruptedError
            left[0] -= not isinstance(event, Ready)
            yield event

    options = {"label": 3, "steps": 4, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            try:
                found = sample_shards("digits", N, Path(folder) / "s", executor=executor, batch_size=BATCH, **options)
            except InterruptedError:
                left[0] = N
        ours = torch.cat(list(found))
    whole = sample(load("digits"), N, batch_size=BATCH, **options)
    about = f"embedded digits, {N} samples of 4 evaluations in shards of {BATCH}, last to first, stopped and resumed"
    return tolerance(float((ours - whole).abs().max()), 1e-30, about)


CLAIMS = (Claim("shards", "gives the bits of one machine in any order, and after a death and a stop", _disorder),)
