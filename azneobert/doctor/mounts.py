"""Which file system a folder is on, as the kernel says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = {
    *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "glusterfs", "9p", "afs", "panfs", "pvfs2"),
    *("orangefs", "wekafs", "virtiofs", "ocfs2", "gfs2", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse"),
    *("fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.goofys", "fuse.mount-s3", "fuse.blobfuse2"),
}
_IN_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True)
class Mount:
    """A mounted file system."""

    point: str
    kind: str
    options: frozenset[str]

    @property
    def is_network(self) -> bool:
        """Whether other machines may see it."""
        return self.kind in _NETWORK

    @property
    def is_in_memory(self) -> bool:
        """Whether it is gone after a restart."""
        return self.kind in _IN_MEMORY

    def __str__(self) -> str:
        return f"{self.kind} at {self.point}"


def mount_of(path: Path, mounts: Path = _MOUNTS) -> Mount:
    """The file system that a path is on; of an unknown kind where the kernel does not say, as on a Mac."""
    place = path.resolve()
    found = Mount("/", "an unknown file system", frozenset())
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:  # a later one lies over an earlier one
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), left.split()[4])
        if place.is_relative_to(point) and len(point) >= len(found.point):
            kind, _, *above = right.split()
            options = {*left.split()[5].split(","), *(above[0].split(",") if above else ())}
            found = Mount(point, kind, frozenset(options))
    return found
