"""Claims of fewstep/sampling/compiled.py."""

from __future__ import annotations

from claims.common import VP, Claim, Noise, Outcome, plan
from claims.problems import mixture
from fewstep.core.unrolled import unrolled
from fewstep.sampling.compiled import compile


def _graphs(seed: int) -> Outcome:
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    model, noise = mixture(VP()), Noise(seed).normal(0, (8, 2))
    torch._dynamo.reset()
    ours, theirs, compiled = CompileCounter(), CompileCounter(), None
    whole = torch.compile(unrolled, backend=theirs, fullgraph=True)
    for steps, rule in ((6, "karras"), (9, "log-snr"), (12, "uniform")):
        made = plan(VP(), "dpmpp-3m", steps, rule)
        compiled = compile(made, model, backend=ours) if compiled is None else compiled.use(made)
        compiled(noise)
        whole(made.table.structure, model, noise, *made.table.numbers("x0", noise.device, torch.float32), [], {})
    about = "dpmpp-3m with 6, 9 and 12 steps on three rules"
    return Outcome(ours.frame_count, theirs.frame_count, "the whole program unrolled", about, unit="graphs compiled")


CLAIMS = (Claim("compile", "one graph serves every schedule and step count", _graphs, quick=False),)
