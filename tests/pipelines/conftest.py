"""One `make repro` at toy size for all tests, in all test processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from project import Project, Reproduced

from azneobert.locks import locked


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Reproduced:
    """The toy project after its first `make repro`. Tests copy it; no test changes it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "reproduced"
    shared.mkdir(exist_ok=True)
    printed = shared / "printed.txt"
    with locked(shared):  # the other process waits for it
        if not printed.exists():
            project = Project.make(shared / "project")
            said = project.run("make", "repro").stdout
            project.commit()
            printed.write_text(said)
    return Reproduced(Project(shared / "project"), printed.read_text())


@pytest.fixture(scope="session")
def reproduced(pristine: Reproduced, tmp_path_factory: pytest.TempPathFactory) -> Reproduced:
    """A copy of the project for the tests of this process, which leave it nearly unchanged."""
    folder: Path = tmp_path_factory.mktemp("reproduced") / "project"
    return Reproduced(pristine.project.copy(folder), pristine.printed)
