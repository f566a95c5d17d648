"""Progress bars: on the standard error while a block runs, and gone after it."""

from __future__ import annotations

from fewstep.core.progress import bar


def test_without_a_name_there_is_none(capsys):
    with bar(None, 3) as advance:
        assert advance is None
    assert capsys.readouterr() == ("", "")


def test_a_bar_counts_to_its_total_on_the_standard_error(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "100")
    with bar("solving", 4) as advance:
        for _ in range(4):
            advance()
    out, err = capsys.readouterr()
    assert out == "" and "solving" in err and "100%" in err
    assert err.endswith("\x1b[2K")  # the line is wiped


def test_an_error_in_the_block_is_the_blocks_own(capsys):
    try:
        with bar("solving", 4):
            raise KeyError("x")
    except KeyError as error:
        assert error.args == ("x",)
    assert capsys.readouterr().out == ""
