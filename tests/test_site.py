"""The documentation as a site: it is built without a warning, and its pages ask no other server for anything."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_site_is_built_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement of the theme
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    files = (file for suffix in ("md", "ipynb") for file in (ROOT / "docs").rglob(f"*.{suffix}"))
    pages = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in files}
    for page in pages - {"index"}:
        text = (tmp_path / page / "index.html").read_text()
        assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="?(?:https?:)?//', text), page


def test_a_readme_is_read_to_its_end():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
