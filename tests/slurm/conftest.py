"""A toy project with prepared data, a real cluster of emulated nodes, and the result of an undisturbed local run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from project import Project
from scene import SIZE, Scene


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if absent:
                item.add_marker(pytest.mark.skip(reason=f"SLURM is not installed: no {', '.join(absent)}"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The toy project with tokens and rows, and nothing trained."""
    project = Project.make(tmp_path_factory.mktemp("made") / "project")
    project.change(SIZE)
    project.commit()
    project.run("dvc", "repro", "rows")
    return project


@pytest.fixture(scope="session")
def undisturbed(made: Project, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The same project trained in two ranks on this machine, without SLURM."""
    project = made.copy(tmp_path_factory.mktemp("undisturbed") / "project")
    project.run("dvc", "repro", "phase2")
    return Scene(project, Cluster())


@pytest.fixture
def scene(made: Project, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A copy of the toy project with a cluster of two nodes, or as a mark `cluster(...)` says."""
    mark = request.node.get_closest_marker("cluster")
    with Cluster(**({"nodes": 2} | (mark.kwargs if mark else {}))) as cluster:
        scene = Scene(made.copy(tmp_path / "project"), cluster)
        scene.launch()
        yield scene
        for started in scene.started:
            started.kill()
