from __future__ import annotations

import pytest
from project import Project, Reproduced


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Reproduced:
    project = Project.make(tmp_path_factory.mktemp("project"))
    printed = project.run("make", "repro").stdout
    project.commit()
    return Reproduced(project, printed)
