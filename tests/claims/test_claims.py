"""Every registered method has a claim, in its room; the quick ones run here, and those that held still hold."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import claims.__main__ as harness  # noqa: E402
from claims.__main__ import EVIDENCE, main, merged, read  # noqa: E402
from claims.claim import Claim, Outcome, arms, collect, compared, experiment, files, thrice  # noqa: E402
from claims.problems import exact, first_order_start, order, problem, stated  # noqa: E402
from fewstep.core.methods import methods  # noqa: E402
from fewstep.processes.vp import VP  # noqa: E402
from fewstep.sampling.build import plan  # noqa: E402

torch.set_num_threads(1)
CLAIMS = collect()
CARDS = [claim.card for claim in CLAIMS]
QUICK = [claim for claim in CLAIMS if claim.quick]
WRITTEN = {(entry["method"], entry["claim"]): entry for entry in read()["claims"]}
HELD = {key: entry["holds"] for key, entry in WRITTEN.items()}


def seconds(claim: Claim) -> float:
    return WRITTEN.get((claim.method, claim.sentence), {"seconds": 0.0})["seconds"]


# By default each method shows the claim that took least: one beside its order, which the contract of solvers measures
# too, where it has one; a claim that takes longer than `LONGEST` is slow.
BY_METHOD: dict[str, list[Claim]] = {}
for quick in sorted(QUICK, key=lambda claim: ("order" in claim.sentence, seconds(claim))):
    BY_METHOD.setdefault(quick.method, []).append(quick)
LONGEST = 0.1  # seconds of a claim of the default suite
SHOWN = {id(mine[0]) for mine in BY_METHOD.values() if seconds(mine[0]) <= LONGEST}


def test_every_method_has_a_claim():
    for method in methods():
        assert method in CARDS, f"{method.name} needs a claim in claims/{Path(method.file).parts[1]}/"


def test_claims_lie_in_the_room_of_their_method():
    for claim in CLAIMS:
        assert Path(claim.file).parts[:-1] == ("claims", Path(claim.card.file).parts[1]), claim.name
    assert {claim.file for claim in CLAIMS} == {path.relative_to(ROOT).as_posix() for path in files()}
    names = [claim.name for claim in CLAIMS]
    assert len(names) == len(set(names)) > len(methods())


@pytest.mark.parametrize(
    "claim",
    [pytest.param(claim, id=claim.name, marks=[] if id(claim) in SHOWN else [pytest.mark.slow]) for claim in QUICK],
)
def test_a_quick_claim_comes_out_as_it_is_written(claim):
    outcome = claim.run(claim.seed)
    assert math.isfinite(outcome.ours) and math.isfinite(outcome.theirs)
    assert outcome.against and outcome.conditions
    if HELD.get((claim.method, claim.sentence)):
        assert outcome.holds, f"held in docs/evidence.json, now {outcome.ours:.3g} against {outcome.theirs:.3g}"


def test_the_evidence_is_of_all_claims():
    written = [(e["method"], e["claim"]) for part in ("claims", "pending") for e in read().get(part, ())]
    assert sorted(written) == sorted((claim.method, claim.sentence) for claim in CLAIMS), "run `make evidence`"
    places = {claim.name: claim.file for claim in CLAIMS}
    for entry in read()["claims"]:
        assert entry["file"] == places[f"{entry['method']}: {entry['claim']}"]
        low = entry["better"] == "low"
        assert entry["holds"] == (entry["ours"] < entry["theirs"] if low else entry["ours"] > entry["theirs"])
    table = read()["tables"]["endpoint"]
    assert set(table) == {"vp", "edm", "flow"}
    assert list(table["vp"]["dpmpp-3m"]) == ["4", "5", "6", "8", "10", "15", "20"]


def test_an_outcome_is_strict_and_finite():
    assert Outcome(1.0, 2.0, "a", "b").holds and not Outcome(2.0, 2.0, "a", "b").holds
    assert Outcome(2.0, 1.0, "a", "b", better="high").holds and not Outcome(1.0, 1.0, "a", "b", better="high").holds
    with pytest.raises(ValueError, match="must be finite, got inf"):
        Outcome(math.inf, 1.0, "a", "b")
    with pytest.raises(ValueError, match="'low' or 'high', got 'lower'"):
        Outcome(0.0, 1.0, "a", "b", better="lower")


def test_the_shared_answer_is_exact():
    """Another solver, on other times, lands where the reference does."""
    problem = exact(VP(), 0)
    other = plan(VP(), "vab-3", 600, "karras")
    assert problem.error(other) < 2e-5
    assert problem.part(7).error(other) < 2e-5 and len(problem.part(7).noise) == 7


def test_orders_are_read_from_the_cards():
    assert (stated("unipc-3"), stated("deis-4"), stated("dpmpp-3m")) == (4, 4, 3)
    assert order(VP(), first_order_start, 0) == pytest.approx(2, abs=0.1)


def test_a_run_of_some_claims_keeps_the_others(tmp_path, capsys):
    path = tmp_path / "evidence.json"
    main(["leading"], path)
    main(["linspace", "--json"], path)
    written = json.loads(path.read_text())
    assert [entry["method"] for entry in written["claims"]] == ["leading", "linspace"]
    printed = json.loads(capsys.readouterr().out)
    assert [entry["method"] for entry in printed["claims"]] == ["linspace"]
    gone = {"method": "leading", "claim": "is no more"}
    assert merged([], {"claims": [gone]}) == []
    with pytest.raises(SystemExit):
        main(["no-such-method"], path)
    assert list(tmp_path.iterdir()) == [path] and path != EVIDENCE


def test_a_claim_that_breaks_takes_no_other_with_it(tmp_path, monkeypatch, capsys):
    path, real = tmp_path / "evidence.json", harness.measure

    def measured(claim):
        if claim.method == "linspace":
            raise RuntimeError("broken")
        return real(claim)

    main(["linspace"], path)
    before = read(path)["claims"]
    monkeypatch.setattr(harness, "measure", measured)
    with pytest.raises(SystemExit, match="1 of 2 claims broke, and keep the figures of before: linspace"):
        main(["leading", "linspace"], path)
    assert [entry["method"] for entry in read(path)["claims"]] == ["leading", "linspace"]
    assert read(path)["claims"][1:] == before and "RuntimeError: broken" in capsys.readouterr().err


def test_a_run_that_is_ended_keeps_the_long_claims_it_has_run(tmp_path, monkeypatch):
    path, first, second = tmp_path / "evidence.json", *(one for one in CLAIMS if one.method in ("leading", "linspace"))

    took = [1.0, 60.0]  # seconds of the first claim, in a run each

    def run(claim: Claim) -> dict[str, Any]:
        if claim.method == second.method:
            raise KeyboardInterrupt
        return {"method": claim.method, "claim": claim.sentence, "holds": True, "ours": 1.0, "theirs": 2.0,
                "better": "low", "against": "a", "seconds": took.pop(0)}  # fmt: skip

    monkeypatch.setattr(harness, "measure", run)
    monkeypatch.setattr(harness, "collect", lambda words=None: [first, second])
    for kept in ([], [first.method]):
        with pytest.raises(KeyboardInterrupt):
            main(["any"], path)
        assert [entry["method"] for entry in read(path)["claims"]] == kept
    assert [entry["method"] for entry in read(path)["pending"]] == [second.method]


def test_a_claim_names_a_registered_method():
    with pytest.raises(ValueError, match="did you mean 'ddim'"):
        _ = Claim("dimm", "is fast", lambda seed: Outcome(0.0, 1.0, "a", "b")).card


def test_a_row_says_everything_but_the_seed():
    @experiment
    def sum_of(seed: int, first: float, second: float = 2.0) -> Outcome:
        return compared((seed + first, second), "b", "c")

    assert (sum_of(1.0)(5).ours, sum_of(1.0)(5).theirs) == (6.0, 2.0)
    assert sum_of(1.0, second=9.0)(0).theirs == 9.0


def test_arms_are_averaged_over_three_seeds():
    found = arms(lambda arm, seed: arm * seed, 1.0, 2.0, "b", "c", unit="u")(4)
    assert (found.ours, found.theirs, found.spread) == (5.0, 10.0, (1.0, 2.0))
    assert (found.conditions, found.unit, found.better) == ("c; mean of 3 seeds", "u", "low")


def test_a_place_is_a_process_or_the_digits():
    on = problem(VP(), 0, 5)
    assert on.about == "8-component mixture, vp, 5 noises" and torch.equal(on.reference, exact(VP(), 0).reference[:5])
    assert problem("digits", 0, 3).about == "embedded digits, 3 noises"


def test_an_experiment_on_three_seeds():
    found = thrice(lambda seed: Outcome(seed, 2.0 * seed, "its double", f"seed {seed}", "low", "numbers"))(4)
    assert (found.ours, found.theirs, found.spread) == (5.0, 10.0, (1.0, 2.0)) and found.holds
    assert found.conditions == "seed 4; mean of 3 seeds" and found.unit == "numbers"
