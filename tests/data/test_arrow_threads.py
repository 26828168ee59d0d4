"""A process that has given up a reader ends as it says, whatever Arrow's threads still do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_REFUSING = """
import sys
from azneobert.data.sources import open_source
from azneobert.recipe import HubSource
records = open_source(HubSource(dataset="parquet", data_files=sys.argv[1])).read()
next(records)
records.close()
sys.exit("refused")
"""

_CALLED_BACK = """
import ctypes, threading
from azneobert.data.arrow_threads import settle
began, finish = threading.Event(), threading.Event()

@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def body(_):
    began.set()
    finish.wait(30)

libc, thread = ctypes.CDLL(None), ctypes.c_ulong()
assert libc.pthread_create(ctypes.byref(thread), None, body, None) == 0
assert began.wait(10)
print(settle(0.3))
finish.set()
libc.pthread_join(thread, None)
print(settle())
"""


def test_a_process_that_leaves_a_parquet_file_of_the_hub_early_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    # Regression: one in two ended with 134, "terminate called without an active exception".
    file = tmp_path / "a.parquet"
    rows = 200_000
    table = pa.table({"id": [str(number) for number in range(rows)], "text": ["salam dünya"] * rows})
    pq.write_table(table, file, row_group_size=rows // 10)
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", _REFUSING, str(file)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (1, "refused\n")


def test_a_thread_that_is_not_pythons_is_waited_for_while_it_is_in_pythons_code() -> None:
    # A process of its own: pytest-xdist has threads that Python does not list, and they would be waited for, too.
    said = subprocess.run([sys.executable, "-c", _CALLED_BACK], capture_output=True, text=True, timeout=60)
    assert (said.stdout, said.stderr) == ("False\nTrue\n", "")
