"""What must be set before a process's first matrix product on a GPU, in whichever test that is."""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch looks once
