"""The resume table on as many GPUs as there are."""

from __future__ import annotations

import pytest
import torch

from azneobert.bench.resume import bench_resume, cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: none is visible to torch"),
]


def test_every_row_of_the_resume_table_holds() -> None:
    worlds = tuple(range(1, torch.cuda.device_count() + 1))
    rows = list(bench_resume(list(cases(worlds))))
    assert len(rows) >= 14
    assert [row.what for row in rows if row.met is False] == []
