"""The benchmark of the registry runs from end to end, at the sample's size."""

from __future__ import annotations

import pytest
from project import ROOT

from azneobert.bench.registry import bench_registry


@pytest.mark.long
def test_every_row_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # so that it is put back
    made, encoder, checkpoint = bench_registry(full=False, corpus=ROOT / "data" / "sample")
    assert made.figure.endswith(" s")
    for row in (encoder, checkpoint):
        assert row.bar == ">= 80%"
        assert row.figure.endswith("%")
        assert "GB/s against" in row.note
