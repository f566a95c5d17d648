"""Claims of fewstep/data/captions.py."""

from __future__ import annotations

from itertools import product

from claims.claim import Claim, Outcome
from fewstep.data.captions import COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Spec, Thing, detokenize, parse, tokenize


def _every(seed: int) -> Outcome:
    things = [Thing(*words) for words in product(COLOURS, SHAPES, (None, *SIZES))]
    alone = [Spec((thing,), place) for thing in things for place in (None, *PLACES)]
    pairs = [Spec((one, two), None, relation) for one in things for two in things for relation in RELATIONS]
    wrong = 0
    for spec in alone + pairs:
        (again,) = detokenize(tokenize(spec.caption)[None])
        wrong += parse(again) != spec
    return Outcome(
        wrong, 1, "demand", f"all {len(alone) + len(pairs)} sentences, to ids and back", unit="sentences misread"
    )


CLAIMS = (Claim("shapes-captions", "every sentence is read as what it was written from", _every),)
