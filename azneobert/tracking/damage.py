"""A damaged file is kept beside the one that goes on, under a name that says so; nothing is thrown away."""

from __future__ import annotations

import errno
import logging
import shutil
import time
from pathlib import Path

log = logging.getLogger(__name__)


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}  # what a full or read-only disk answers


def keep_damaged(file: Path, found: str, consequence: str) -> None:
    """Copy a damaged file to ``<name>.damaged-<time>`` beside it; say in one line what was found and what follows."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    copy = file.with_name(f"{file.name}.damaged-{stamp}")
    number = 1
    while copy.exists():
        number += 1
        copy = file.with_name(f"{file.name}.damaged-{stamp}-{number}")
    shutil.copyfile(file, copy)
    log.warning("%s: %s; kept as %s, %s", file, found, copy.name, consequence)
