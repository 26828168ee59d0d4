"""A corpus in another language than Azerbaijani, from its folder to its documents."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from project import ROOT, Project

from azneobert.recipe import load_recipe
from azneobert.yaml_files import edit_yaml, write_yaml

TURKISH = [
    "Sabahın erken saatlerinde balıkçılar limandan ayrıldı ve akşama doğru ağlarını doldurup geri döndüler.",
    "Kütüphanenin ikinci katında, pencerenin yanındaki masada ışık bütün gün çok güzel olur.",
    "Yağmur dinince çocuklar sokağa çıkıp su birikintilerinin üzerinden atlamaya başladılar.",
    "Dağ yolunu kapatan kar, öğleden sonra açılan güneşle birlikte yavaş yavaş erimeye başladı.",
]
AZERBAIJANI = "Səhər tezdən balıqçılar limandan ayrıldı və axşama yaxın torlarını doldurub geri qayıtdılar."


def test_a_turkish_folder_is_told_by_its_letters_and_kept(tmp_path: Path) -> None:
    project = Project.make(tmp_path / "project")
    place = project.folder / "corpus/haberler"
    place.mkdir(parents=True)
    lines = [
        json.dumps({"id": n, "text": text})
        for n, text in enumerate([*TURKISH, "<p>" + TURKISH[0] + "</p>", AZERBAIJANI])
    ]
    (place / "a.jsonl").write_text("\n".join(lines) + "\n")
    said = project.run("azneobert", "recipe", "new", "haber", "--from", "corpus").stdout
    assert "language: turkish" in said
    project.run("azneobert", "recipe", "use", "haber")
    assert load_recipe(project.folder / "params.yaml").data.cleaning.language == "turkish"
    printed = project.run(sys.executable, "pipelines/ingest.py", "haberler").stdout
    assert "5 of 6 documents kept (dropped: 1 language)" in printed
    assert "HTML in 1 documents" in printed
    assert f"language: 5: {AZERBAIJANI[:60]}" in printed
    report = json.loads((project.folder / "outputs/haber/reports/ingest/haberler.json").read_text())
    assert len(report["examples"]["language"]) == 1

    content = edit_yaml(project.folder / "params.yaml")
    content["data"]["cleaning"].update({"language": "any", "html": "strip"})
    write_yaml(project.folder / "params.yaml", content)
    printed = project.run(sys.executable, "pipelines/ingest.py", "haberler").stdout
    assert "6 of 6 documents kept" in printed


def test_the_template_s_own_language_can_be_read(tmp_path: Path) -> None:
    """What stands in its comment, put in the place of `azeri_latin`."""
    text = (ROOT / "recipes/template.yaml").read_text(encoding="utf-8")
    start = text.index("    #   language:\n")
    end = text.index("    language: azeri_latin")
    block = "".join(line.replace("    #   ", "    ", 1) for line in text[start:end].splitlines(keepends=True))
    text = text[:start] + block + text[end:].split("\n", 1)[1]
    text = text.replace("  files: {}", "  files:\n    a:\n      path: a", 1).replace("order: []", "order: [a]")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    language = load_recipe(tmp_path / "params.yaml").data.cleaning.language
    assert not isinstance(language, str)
    assert language.lookalikes == {"a": "а", "o": "о"}
