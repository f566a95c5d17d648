"""Method cards: read from source with ast, found by name, orders in the name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fewstep.core import methods as registry
from fewstep.core.errors import suggest
from fewstep.core.methods import card, find, methods


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
        ' use="boom", facts={"order": "9", "orders": (1, 2)}),)\n',
    )
    package("sampling/other.py", "METHODS = 3\nx = 1\n")
    (found,) = methods("sampling")
    assert (found.name, found.paper, found.claim, found.use) == ("boom", "A paper", "order 9", "boom")
    assert found.facts == {"order": "9", "orders": (1, 2)}
    assert (found.module, found.room, found.file) == ("fewstep.sampling.boom", "sampling", "fewstep/sampling/boom.py")


def test_a_name_registered_twice_names_both_files(package):
    package("sampling/one.py", 'METHODS = (Method("twin", use="f"),)\n')
    package("guidance/two.py", 'METHODS = (Method("twin", use="g"),)\n')
    with pytest.raises(ValueError, match="'twin' is registered in fewstep.guidance.two and in fewstep.sampling.one"):
        methods()


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
