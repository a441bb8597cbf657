"""The line that is shown while training runs."""

import io

import torch
from rich.console import Console
from rich.live import Live
from torch import nn

import inrun
from inrun.attribution._live import LiveLine, Stopwatch

ROW = {"step": 7, "opening_loss": 1.5, "closing_loss": 1.25}


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def test_a_terminal_sees_loss_residual_and_overhead():
    console = terminal()
    line = LiveLine(True, console)
    line.update(ROW, 0.0123, 0.5)
    line.close()
    shown = console.file.getvalue()
    assert "step 7" in shown
    assert "1.2500" in shown
    assert "residual 1.23%" in shown
    assert "+50% time" in shown


def test_a_terminal_keeps_a_line_of_a_step_whose_loss_jumped():
    console = terminal()
    line = LiveLine(True, console)
    for step in range(1, 40):
        rise = 3.0 if step == 33 else -0.01 * (1 + step % 3)
        line.update({"step": step, "opening_loss": 2.0, "closing_loss": 2.0 + rise}, 0.0, 0.0)
    line.close()
    told = [text for text in console.file.getvalue().split("inrun") if "rose by" in text]
    assert len(told) == 1
    assert "step 33: the validation loss rose by 3" in told[0]


def test_a_terminal_sees_what_payout_holds_and_will_hold(monkeypatch):
    shown = []
    monkeypatch.setattr(LiveLine, "update", lambda self, *row: shown.append(row[-1]()))
    model = nn.Linear(1000, 50)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(2000, 1000)
    utility = inrun.Utility(lambda m, rows: m(rows).square().mean(), x[-9:])
    with inrun.attach(model, optimizer, utility, momentum_window=3) as attribution:
        for step in range(4):
            rows = torch.arange(500) + 400 * step
            with attribution.batch(rows):
                model(x[rows]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    # the step's inputs and output gradients, 2.1 MB, and a copy of the weights, 0.2 MB
    assert shown[0].startswith("  payout 2 of 7 MB")
    assert shown[-1].startswith("  payout 7 of 7 MB")


def test_nothing_is_shown_without_a_terminal_or_when_switched_off():
    for console, enabled in ((Console(file=io.StringIO()), True), (terminal(), False)):
        line = LiveLine(enabled, console)
        line.update(ROW, 0.0, 0.0)
        line.close()
        assert console.file.getvalue() == ""


def test_a_program_with_a_live_display_of_its_own_goes_on():
    """Older rich refuses a second display, newer nests it: neither may disturb the first."""
    console = terminal()
    with Live("their own", console=console) as theirs:
        line = LiveLine(True, console)
        line.update(ROW, 0.0, 0.0)
        line.close()
        theirs.update("still their own", refresh=True)
    assert "still their own" in console.file.getvalue()


def test_time_inside_is_counted_once_when_nested(monkeypatch):
    clock = iter([10.0, 13.0, 18.0])  # entered, left, asked
    monkeypatch.setattr("inrun.attribution._live.time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with watch, watch:
        pass
    assert watch.inside == 3.0
    assert watch.overhead == 3.0 / 5.0
