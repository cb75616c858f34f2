"""The site builds without a warning and works without a network; its equations are there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_reference_says_what_a_command_does_in_whole_sentences(site: Path) -> None:
    listed = (site / "reference" / "workbench.html").read_text()
    assert "a second run resumes where the last one stopped." in listed
    assert not re.findall(r"<li>\s*<p?>?<code>[\w-]+</code>:[^<]*\.\.\.\s*</", listed)


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        built = site / page.relative_to(ROOT / "docs").with_suffix(".html")
        assert built.is_file(), built
    # Rendered notebooks also ask for plotly's MathJax, and show their figures without it.
    for built in set(site.rglob("*.html")) - set((site / "notebooks").glob("*")):
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", built.read_text()):
            assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), f"{built}: {tag}"


def test_equations_became_mathml(site: Path) -> None:
    for page in (ROOT / "docs" / "explain").glob("*.md"):
        built = (site / "explain" / page.name).with_suffix(".html").read_text()
        # Each displayed one, and none is left as it was written.
        assert built.count('display="block"') == len(re.findall(r"\$\$", page.read_text())) / 2
        assert "arithmatex" not in built


def test_the_references_are_the_programs_own(site: Path) -> None:
    said = (site / "reference" / "workbench.html").read_text()
    assert "workbench compress quantize" in said
    assert "--ttft-p99" in said
    names = (site / "reference" / "python.html").read_text()
    import workbench

    for name in workbench.__all__:
        assert f"wb.{name}<" in names, name
    assert "<strong>Raises</strong>" in names


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_search_works_from_a_folder(site: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(offline=True)
        page.goto(f"file://{site}/index.html")
        page.fill(".md-search__input", "coordinated omission")
        page.wait_for_selector(".md-search-result__item", timeout=20_000)
        assert "measured" in page.inner_text(".md-search-result__list").lower()
        page.goto(f"file://{site}/explain/bounds.html")
        boxes = [box.bounding_box() for box in page.query_selector_all('math[display="block"]')]
        assert boxes
        assert all(box and box["height"] > 20 for box in boxes)
        browser.close()
