"""The commands of docs/cluster.md, in their order, as a user of a cluster types them."""

from __future__ import annotations

import re

from project import ROOT
from scene import Scene, curve

TEXT = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", TEXT, re.M | re.S)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_commands_run_to_the_end_of_phase_2(scene: Scene, undisturbed: Scene) -> None:
    (scene.project.folder / "launch.yaml").unlink()
    for command in commands():
        done = scene.ask("bash", "-c", command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.startswith("cp "):
            scene.launch()  # "fill in what is yours"
    assert curve(scene, "phase1") == curve(undisturbed, "phase1")
    assert curve(scene, "phase2") == curve(undisturbed, "phase2")


def test_every_key_of_the_template_is_explained() -> None:
    template = (ROOT / "slurm" / "launch.yaml").read_text(encoding="utf-8")
    keys = re.findall(r"^(\w+):", template, re.M)
    table = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `.*", TEXT.split("## Phase 1")[0], re.M)))
    assert set(keys) <= set(table)
