import re

from azneobert import pace
from azneobert.training.progress import Progress

FIGURES = {"train/loss": 2.5, "train/tokens_per_second": 1234.0}


def test_a_line_of_a_log_has_its_time_and_the_time_left_by_the_recent_rate(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    with Progress("phase1", 200, 50, visible=True) as shown:
        for step in range(51, 101):
            now[0] += 70 if step == 51 else 1  # compiling
            shown.update(step, FIGURES)
        shown.validation(100, 3.0, 0.25)
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    *_, step_line, held_out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{stamp}  phase1  step 100/200  loss 2.5000  1,234 tokens/s  left 0:01:40", step_line)
    assert re.fullmatch(rf"{stamp}  phase1  step 100/200  held-out loss 3.0000  accuracy 25.0%", held_out)


def test_other_ranks_say_nothing(capsys):
    with Progress("phase1", 10, 0, visible=False) as shown:
        shown.update(10, FIGURES)
        shown.validation(10, 3.0, 0.25)
    assert capsys.readouterr().out == ""
