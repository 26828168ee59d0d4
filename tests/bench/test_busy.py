"""`azneobert bench busy`: every setting has its turns alone and beside other work, in a process of its own."""

from __future__ import annotations

import psutil
import pytest

from azneobert.bench import busy
from azneobert.bench.busy import Turns, bench_busy


@pytest.mark.long
def test_every_setting_is_a_row_alone_and_beside_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [name for name in busy.SETTINGS if name in (busy._BY_ITSELF, busy._OURS)]
    monkeypatch.setattr(busy, "SETTINGS", {name: busy.SETTINGS[name] for name in chosen})
    rows = list(bench_busy(Turns(rounds=1, seconds=0.2)))
    assert [row.what.rsplit(", ", 1)[1] for row in rows] == ["alone", "beside a busy process a core"] * 2
    assert rows[0].figure == "1.00", "the others are shares of it"
    assert [bool(row.bar) for row in rows] == [False, False, True, True]
    assert all(float(row.figure) > 0 and "tokens/s" in row.note for row in rows)


def test_other_work_ends_with_what_it_was_beside() -> None:
    def programs() -> list[str]:
        return [child.name() for child in psutil.Process().children()]

    with busy._other_work(True):
        assert "sha256sum" in programs()
    assert "sha256sum" not in programs()
