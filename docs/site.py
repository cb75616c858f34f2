"""What the site has beside the pages: read by mkdocs (hooks) and by mkdocstrings (Sections).

linked files      what a page names outside docs/ is put into the site, so that links work there too
references        of the commands from their own help, of the public names from their docstrings
notebooks         those that `make docs` has executed and rendered
equations         LaTeX between dollars becomes MathML: browsers show it, no script and no network
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
import typer
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

ROOT = Path(__file__).resolve().parent.parent
RENDERED = ROOT / "build" / "notebooks"
PAGES = ["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "experiments/LOG.md"]
"""Of the project, shown as pages; other files that a page links are shown as they are."""
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is generated, and what is shown of the project itself."""
    for name in PAGES:
        files.append(File.generated(config, f"project/{name}", abs_src_path=str(ROOT / name)))
    for name, text in {
        "reference/workbench.md": _command("workbench"),
        "reference/serving.md": _command("serving"),
        "reference/python.md": _public_names(),
        "notebooks.md": _notebooks(),
    }.items():
        files.append(File.generated(config, name, content=text))
    for page in sorted(RENDERED.glob("*.html")):
        files.append(File.generated(config, f"notebooks/{page.name}", abs_src_path=str(page)))
    linked: set[Path] = set()
    for page in [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in PAGES)]:
        linked |= {path for path in _outside(page) if path.is_file()}
    for path in sorted(linked):
        files.append(File.generated(config, _as_shown(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave docs/ into links to what the site shows of it."""
    source = page.file.src_uri.removeprefix("project/")
    at = ROOT / source if source in PAGES else ROOT / "docs" / page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        words, target = match.groups()
        address, _, anchor = target.partition("#")
        path = _meant(at, address)
        if path is None:
            return match[0]
        if path.is_dir() or not path.exists():
            return words if "`" in words else f"`{words}`"
        to = posixpath.relpath(_as_shown(path), posixpath.dirname(page.file.src_uri))
        return f"[{words}]({to}{'#' + anchor if anchor else ''})"

    text = _LINK.sub(turned, markdown)
    if source in PAGES:
        # Pictures of the project's own pages lie in docs/.
        up = "../" * (page.file.src_uri.count("/"))
        text = re.sub(r"(!\[[^\]]*\]\()(?:\.\./)*docs/", rf"\1{up}", text)
    return text


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write the equations as MathML."""

    def written(match: re.Match[str]) -> str:
        text = re.sub(
            r"&(amp|lt|gt);", lambda m: {"amp": "&", "lt": "<", "gt": ">"}[m[1]], match[2]
        )
        return str(convert(text, display="block" if match[1] == "div" else "inline"))

    return _MATHS.sub(written, html)


class Sections(griffe.Extension):
    """Shows `Args:`, `Returns:`, `Raises:` and the like of our docstrings as lists."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite a docstring before it is rendered."""
        if obj.docstring is not None:
            obj.docstring.value = sections(obj.docstring.value)


def sections(docstring: str) -> str:
    """Our layout (`Args:    name: what` and names below each other) as Markdown."""
    lines: list[str] = []
    inside = False
    for line in docstring.split("\n"):
        head = re.match(r"^(Args|Returns|Raises|Source|Attributes|Example|Yields):\s*(.*)$", line)
        if head:
            inside = True
            lines += ["", f"**{head[1]}**", ""]
            lines += [f"- {head[2]}"] if head[2] else []
        elif inside and line.strip():
            new = re.match(r"^\s+(\*{0,2}\w+(?:, \w+)*): (.*)$", line)
            lines.append(f"- `{new[1]}`: {new[2]}" if new else f"  {line.strip()}")
        else:
            inside = inside and bool(line.strip())
            lines.append(line)
    return re.sub(r"^- (\*{0,2}\w+): ", r"- `\1`: ", "\n".join(lines), flags=re.MULTILINE)


def _outside(page: Path) -> set[Path]:
    """The files that a page links and the site would not have."""
    found = (_meant(page, match[2].partition("#")[0]) for match in _LINK.finditer(page.read_text()))
    return {path for path in found if path is not None and _as_shown(path).startswith("source/")}


def _meant(page: Path, address: str) -> Path | None:
    """What a relative link of a page means; None where mkdocs knows that itself."""
    if not address or "://" in address or address.startswith(("mailto:", "/")):
        return None
    path = (page.parent / address).resolve()
    inside = path.is_relative_to(ROOT / "docs") and page.is_relative_to(ROOT / "docs")
    return None if inside or not path.is_relative_to(ROOT) else path


def _as_shown(path: Path) -> str:
    """Where the site has a file of the project."""
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES:
        return f"project/{name}"
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    rendered = f"notebooks/{path.stem}.html"
    if path.suffix == ".ipynb" and (RENDERED.parent / rendered).exists():
        return rendered
    # As text: a server or a browser would offer .py and .yaml for download.
    return f"source/{name}.txt"


def _command(name: str) -> str:
    """The reference of a command, which is its own help."""
    module = __import__(f"{name}.cli", fromlist=["app"])
    command = typer.main.get_command(module.app)
    _say_all(command)
    context = typer.Context(command, info_name=name)
    text = get_docs_for_click(obj=command, ctx=context, name=name)
    # Lines of one option each; what is in angle brackets or squared is no HTML and no link.
    return text.replace("[default: ", "\\[default: ").replace("[required]", "\\[required]")


def _say_all(command: Any) -> None:
    """Lists of commands hold whole sentences here, where a terminal has room for 45 characters."""
    for below in getattr(command, "commands", {}).values():
        below.short_help = (below.help or "").split("\n\n")[0].replace("\n", " ")
        _say_all(below)


def _public_names() -> str:
    """The reference of `import workbench as wb`, from docstrings."""
    from workbench import _HOME

    parts = [
        "# `import workbench as wb`\n",
        "Stages are functions, what they take and give are frozen values. Each name is imported when",
        "it is first used. The other packages are described in their modules' docstrings.\n",
    ]
    for name in sorted(_HOME, key=str.lower):
        home = _HOME[name]
        parts.append(f"## `wb.{name}`\n\n::: {home}.{name}\n")
    return "\n".join(parts)


def _notebooks() -> str:
    lines = ["# Notebooks\n", "`make lab` opens them; `make docs` executes and renders them.\n"]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        rendered = RENDERED / f"{path.stem}.html"
        if rendered.exists():
            lines.append(f"- [{path.stem}](notebooks/{rendered.name})")
        else:
            lines.append(f"- {path.stem} (not rendered here)")
    return "\n".join(lines) + "\n"
