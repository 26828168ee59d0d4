"""The documentation as a site: it builds without a warning, every page is in its menu, and no link of it is dead."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
def test_every_page_is_in_the_menu(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert place == "index" or f'href="{place}/"' in start, f"{page.name} is not in the nav of mkdocs.yml"


@pytest.mark.long
def test_links_to_files_outside_of_the_documentation_are_plain_text(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert pages
    for page in pages:
        for link in re.findall(r'href="([^"#]+)"', page.read_text(encoding="utf-8")):
            local = not re.match(r"[a-z]+:", link)
            assert not local or (page.parent / link).exists() or page.name == "404.html", f"{page}: {link}"


@pytest.mark.long
def test_the_pages_of_the_api_hold_the_docstrings(site: Path) -> None:
    page = (site / "api/index.html").read_text(encoding="utf-8")
    assert "a pure function from (seed, sample index)" in page
    assert "micro_batch_loader" in page
