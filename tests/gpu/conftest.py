"""What must be set before the first matrix product of a process on a GPU, whichever test makes it."""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch looks once
