import re

from azneobert import pace
from azneobert.data import progress
from azneobert.data.progress import Progress


def test_a_line_of_a_log_has_its_time_and_says_what_is_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    with Progress("news", 100_000_000) as shown:
        shown.advance_to(5_000, None)  # of an earlier run: not known how far in bytes
        shown.advance_to(5_100, 60_000_000)
        for done in (62, 64, 66):
            now[0] += 2
            shown.advance_to(5_100 + done, done * 1_000_000)
    last = capsys.readouterr().out.splitlines()[-1]
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{stamp}  news: 5,166 documents, 66 of 100 MB, left 0:00:34", last)


def test_no_time_is_promised_where_the_size_is_not_known(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with Progress("stream", None) as shown:
        shown.advance(3, 1_000_000)
    assert re.fullmatch(r".{19}  stream: 3 documents, 1 MB\n", capsys.readouterr().out)
