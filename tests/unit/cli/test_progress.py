"""What a long command says while it is at work."""

import time

from inrun.cli._terminal import Progress


def test_where_there_is_no_terminal_lines_go_to_stderr_while_it_lasts(capsys):
    with Progress(seconds=0.02) as at:
        at("training again", 3, 1200)
        time.sleep(0.2)
    out, err = capsys.readouterr()
    time.sleep(0.05)
    assert not out
    assert "training again, 3 of 1,200 (0 s)" in err.splitlines()
    assert capsys.readouterr().err == ""


def test_a_command_that_is_quick_says_nothing(capsys):
    with Progress() as at:
        at("values")
    assert capsys.readouterr() == ("", "")


def test_a_name_from_the_data_sends_nothing_to_the_terminal(capsys):
    with Progress(seconds=0.02) as at:
        at("values: \x1b]0;owned\x07 [bold]x[/bold]")
        time.sleep(0.2)
    err = capsys.readouterr().err
    assert "[bold]x[/bold]" in err
    assert "\x1b" not in err
