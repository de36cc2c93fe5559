"""Pages, links and tables of the documentation, read as text: what Sphinx would find broken, and what it would not."""

from __future__ import annotations

import builtins
import inspect
import json
import re
import runpy
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import st_gchb

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Parts of pages, which include them.
TABLES = sorted([*(DOCS / "results").glob("*/*.md"), *(DOCS / "user-guide").glob("*/*.md")])
MADE = ("_build", "generated", "getting-started/tutorials/")
"""Folders below docs/ that the build makes."""
PAGES = sorted(
    page
    for page in DOCS.rglob("*.md")
    if page not in TABLES and not str(page.relative_to(DOCS)).startswith((*MADE, "_"))
)
# Pages that show a file of the repository's root: its links are read from there.
ROOT_PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
ROOMS = [name for name in st_gchb.__all__ if inspect.ismodule(getattr(st_gchb, name)) and name != "errors"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_readme_shows_the_table_of_the_study():
    table = (DOCS / "results/tissues/overall.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- docs/results/tissues/overall.md -->\n{table}" in readme


def without_code(text: str) -> str:
    """Text without blocks of code; what directives hold stays, since it may hold links."""
    kept, block = [], ""
    for line in text.splitlines():
        if line.startswith("```"):
            block = "" if block else line
        elif not block or block.startswith("```{"):
            kept.append(line)
    return "\n".join(kept)


def links_of(text: str) -> Iterator[tuple[str, str]]:
    """Target and anchor of each link to a place in the repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def api_names() -> dict[str, list[str]]:
    """Names on the page of the API, by the module that they are listed under."""
    names: dict[str, list[str]] = {}
    module = ""
    for line in (DOCS / "api.md").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = found[1]
        elif found := re.match(r"   (\w+)$", line):
            names.setdefault(module, []).append(found[1])
    return names


def test_there_is_something_to_read():
    assert len(PAGES) > 20
    assert len(TABLES) > 20
    assert len(ROOMS) > 6


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=name_of)
def test_links_lead_to_pages_and_headings(page):
    broken = []
    for target, anchor in links_of(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        if "tutorials" in path.parts and path.suffix == ".ipynb":
            path = ROOT / "tutorials" / path.name
        if not path.exists() or (anchor and anchor not in anchors_of(path)):
            broken.append(f"{target}#{anchor}")
    assert broken == []


@pytest.mark.parametrize("notebook", sorted((ROOT / "tutorials").glob("*.ipynb")), ids=name_of)
def test_links_of_tutorials_lead_to_pages(notebook):
    there = DOCS / "getting-started" / "tutorials"  # where the build copies them
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    links = [link for cell in cells if cell["cell_type"] == "markdown" for link in links_of("".join(cell["source"]))]
    # The other notebooks are copied with it.
    others = {path.name for path in notebook.parent.glob("*.ipynb")}
    assert [path for path, _ in links if path not in others and not (there / path).resolve().exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_shows_is_there(page):
    shown = re.findall(r"^```\{(?:include|image)\} (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [path for path in shown if not (page.parent / path).is_file()] == []


def test_every_table_is_shown_on_a_page():
    shown = {
        (page.parent / path).resolve()
        for page in PAGES
        for path in re.findall(r"^```\{include\} (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert [name_of(table) for table in TABLES if table not in shown] == []


def test_every_page_is_on_a_shelf_of_the_index():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = [
        line
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if line and not line.startswith(":")
    ]
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES} - {"index"}
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("room", ROOMS)
def test_the_api_page_lists_a_rooms_public_names(room):
    module = getattr(st_gchb, room)
    # Of a dictionary, a page of its own would show the docstring of dict: the page names it in a sentence.
    tables = {name for name in module.__all__ if isinstance(getattr(module, name), dict)}
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert set(api_names()[f"st_gchb.{room}"]) == set(module.__all__) - tables
    assert [name for name in tables if f"`{name}`" not in text] == []


def test_the_api_page_lists_what_the_package_itself_has():
    names = {name for name in st_gchb.__all__ if inspect.isroutine(getattr(st_gchb, name))}
    assert set(api_names()["st_gchb"]) == names


def test_errors_are_on_both_their_pages():
    from st_gchb import errors

    page = (DOCS / "user-guide" / "errors.md").read_text(encoding="utf-8")
    assert set(api_names()["st_gchb.errors"]) == set(errors.__all__)
    assert set(re.findall(r"~st_gchb\.errors\.(\w+)`", page)) == set(errors.__all__)


def test_errors_are_what_their_page_says_they_are_too():
    from st_gchb import errors

    page = (DOCS / "user-guide" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \{class\}`~st_gchb\.errors\.(\w+)`[^|]*\| ([^|]+)\|", page, re.MULTILINE)
    said = {(name, also) for name, cell in rows for also in re.findall(r"`(\w+)`", cell.partition(", and no")[0])}
    assert len(said) > 8
    wrong = [pair for pair in said if not issubclass(getattr(errors, pair[0]), getattr(builtins, pair[1]))]
    assert wrong == []


def test_the_method_names_files_that_are_there():
    text = (DOCS / "user-guide" / "method.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / "src" / "st_gchb" / path).exists()] == []


def test_paths_below_docs_that_are_named_are_there():
    """Commands that write tables, pages that name them, and error messages follow a page that moves."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "*.py", "*.md", "*.toml", "Makefile", ".gitignore"]
    if not (ROOT / ".git").exists():
        pytest.skip(f"{ROOT} is no git checkout, so its files cannot be listed")
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    missing = []
    for name in filter(None, listed):
        for path in re.findall(r"(?<![\w/.])docs/[\w./-]*[\w/]", (ROOT / name).read_text(encoding="utf-8")):
            made = f"{path.removeprefix('docs/')}/".startswith(MADE)
            if not made and name != name_of(Path(__file__)) and not (ROOT / path).exists():
                missing.append(f"{name}: {path}")
    assert missing == []


def test_the_tables_of_encoders_are_those_of_the_package():
    made = runpy.run_path(str(DOCS / "encoder_table.py"))
    for name in ("overview", "recipe", "notes"):
        table = (DOCS / "user-guide" / "encoders" / f"{name}.md").read_text(encoding="utf-8")
        assert table == made[name](), "python docs/encoder_table.py writes them anew"


def test_the_citation_has_the_packages_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert str(citation["version"]) == project["version"]
    assert citation["preferred-citation"]["authors"][0]["family-names"] == "Chi"


def test_bug_reports_ask_for_versions_and_workflows_run_what_is_here():
    forms = ROOT / ".github" / "ISSUE_TEMPLATE"
    bug = yaml.safe_load((forms / "bug_report.yml").read_text(encoding="utf-8"))
    asked = {field.get("id"): field for field in bug["body"]}["versions"]
    assert "st_gchb.print_versions()" in asked["attributes"]["description"]
    assert asked["validations"] == {"required": True}
    runs = {
        name: [
            step.get("run")
            for job in yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())["jobs"].values()
            for step in job["steps"]
        ]
        for name in ("ci.yml", "docs.yml")
    }
    assert ".ci/run" in runs["ci.yml"]
    assert "make docs" in runs["docs.yml"]
