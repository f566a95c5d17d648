"""Method cards: read from source with ast, found by name, orders in the name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fewstep.core import methods as registry
from fewstep.core.errors import suggest
from fewstep.core.methods import card, find, made, methods, order


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of its own, read in place of fewstep's."""
    root = tmp_path / "fewstep"
    (root / "core").mkdir(parents=True)
    monkeypatch.setattr(registry, "__file__", str(root / "core" / "methods.py"))
    registry._all.cache_clear()

    def write(name: str, text: str) -> None:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")

    yield write
    registry._all.cache_clear()


def test_cards_are_read_without_importing(package):
    package(
        "sampling/boom.py",
        'raise RuntimeError("imported")\n_PAPER = "A paper"\nMETHODS = (Method("boom", paper=_PAPER, claim="order 9",'
        ' use="boom", facts={"order": 9, "orders": (1, 2)}),)\nsyntax error below the cards (is never read\n',
    )
    package("sampling/other.py", "METHODS = 3\nx = 1\n")
    (found,) = methods("sampling")
    assert (found.name, found.paper, found.claim, found.use) == ("boom", "A paper", "order 9", "boom")
    assert found.facts == {"order": 9, "orders": (1, 2)}
    assert (found.module, found.room, found.file) == ("fewstep.sampling.boom", "sampling", "fewstep/sampling/boom.py")


def test_a_file_is_parsed_to_the_end_of_its_cards(package):
    card = 'Method(\n        "long",\n        claim="c (d)",\n        use="f",\n    ),'
    package("sampling/long.py", f"METHODS = (\n    {card}\n)\n\ndef f(:\n")
    assert [found.name for found in methods()] == ["long"]
    package("sampling/open.py", f"METHODS = (\n    {card}\n")
    registry._all.cache_clear()
    with pytest.raises(ValueError, match="open.py: METHODS must be closed by a line that is"):
        methods()


def test_a_name_is_unique_within_a_kind(package):
    package("sampling/one.py", 'METHODS = (Method("twin", use="f"),)\n')
    package("guidance/two.py", 'METHODS = (Method("twin", use="g"),)\n')
    assert [(found.kind, found.name) for found in methods()] == [("guidance", "twin"), ("solver", "twin")]
    assert card("twin", "solver")[0].use == "f" and card("twin", room="guidance")[0].use == "g"
    with pytest.raises(ValueError, match="'twin' is a guidance and a solver: say which, with kind="):
        card("twin")
    package("editing/three.py", 'METHODS = (Method("twin", kind="solver", use="h"),)\n')
    registry._all.cache_clear()
    message = "the solver 'twin' is registered in fewstep.editing.three and in fewstep.sampling.one"
    with pytest.raises(ValueError, match=message):
        methods()


def test_a_card_has_its_rooms_kind_or_its_own(package):
    package("metrics/one.py", 'METHODS = (Method("a", use="f"), Method("b", kind="check", use="f"))\n')
    assert [found.kind for found in methods("metrics")] == ["metric", "check"]
    package("training/two.py", 'METHODS = (Method("c", use="f"),)\n')
    registry._all.cache_clear()
    with pytest.raises(ValueError, match="the card 'c' in fewstep/training/two.py must name its kind"):
        methods()


def test_kinds_and_rooms():
    assert {found.kind for found in methods("solver")} == {"solver"}
    assert methods("sampling") == methods(room="sampling") != methods("solver")
    assert {found.kind for found in methods("sampling")} > {"solver", "executor"}
    # A kind comes before a room of the same name.
    assert {found.kind for found in methods(room="guidance")} > {found.kind for found in methods("guidance")}
    with pytest.raises(ValueError, match="unknown kind 'solvers': did you mean 'solver'"):
        methods("solvers")
    with pytest.raises(ValueError, match="unknown room 'sampler': did you mean .*'sampling'"):
        methods(room="sampler")


def test_made_sets_options_and_checks_them():
    from fewstep.training.weightings import min_snr

    weighting = made("weighting", "min-snr", 2, gamma=3.0)
    assert weighting.func is min_snr and weighting.keywords == {"gamma": 3.0}
    assert made("solver", "unipc-2", 3).keywords == {"order": 2}
    # An option may be called as made's own arguments are.
    assert made("weighting", "uniform-weighting", 2, kind="v").keywords == {"kind": "v"}
    for call, message in (
        (
            lambda: made("weighting", "min-snr", 2, gama=3.0),
            "unknown option of the weighting 'min-snr' 'gama': did you",
        ),
        (lambda: made("solver", "euler", 3, eta=1.0), "the solver 'euler' has no options, got 'eta'"),
        (lambda: made("solver", "unipc-3", 3, order=2), "the order is in the name already: 'unipc-3', got order=2"),
        (
            lambda: made("guidance", "known", 1),
            "the method of guidance 'known' needs picture=...; its options are picture, mask",
        ),
        (lambda: made("rule", "karas"), "unknown timestep rule 'karas': did you mean 'karras'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    "name,stated", [("ddim", 1), ("deis-3", 3), ("unipc-3", 4), ("unipc", 3), ("ipndm-4", 2), ("ddpm", None)]
)
def test_the_order_of_a_solver(name, stated):
    assert order(*card(name, "solver")) == stated


def test_find_imports_on_demand():
    from fewstep.sampling.dpmpp import dpmpp_2m

    assert find("dpmpp-2m") is dpmpp_2m
    assert find("dpmpp-2m", room="sampling") is dpmpp_2m


def test_listing_imports_no_torch():
    code = "from fewstep.core.methods import methods; assert len(methods()) > 20"
    subprocess.run([sys.executable, "-c", f"import sys; {code}; assert 'torch' not in sys.modules"], check=True)


def test_an_order_in_the_name():
    method, order = card("unipc-3")
    assert (method.name, order) == ("unipc", 3)
    assert card("unipc") == (method, None)
    assert find("unipc-3").keywords == {"order": 3}
    with pytest.raises(ValueError, match="the order of 'unipc' must be at least 1, got 0"):
        find("unipc-0")
    with pytest.raises(ValueError, match="unknown method 'ddim-2'.*'ddim'"):
        find("ddim-2")


@pytest.mark.parametrize(
    "given,close", [("dpm++2m", "dpmpp-2m"), ("DPMPP_2M", "dpmpp-2m"), ("unipcc", "unipc"), ("karas", "karras")]
)
def test_close_names_are_offered(given, close):
    with pytest.raises(ValueError, match=f"'{close}'") as caught:
        find(given)
    assert repr(given) in str(caught.value)


def test_a_room_holds_only_its_own():
    with pytest.raises(ValueError, match="unknown process 'ddim'"):
        find("ddim", room="processes", what="process")
    assert {method.room for method in methods("processes")} == {"processes"}
    assert {method.name for method in methods("sampling", "unipc")} == {"unipc"}


def test_every_card_loads():
    for method in methods():
        assert callable(method.load()), method.name
        assert method.claim, method.name


def test_suggest_without_close_names():
    assert str(suggest("thing", "zzz", ["b", "a"])) == "unknown thing 'zzz': known: a, b"
    assert str(suggest("thing", "zzz", [])) == "unknown thing 'zzz': there are none here"
    assert str(suggest("solver", "dpm++2m", ["dpmpp-2m"])) == "unknown solver 'dpm++2m': did you mean 'dpmpp-2m'?"
