"""The citation says what CITATION.cff says, and that says what stands on the paper."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import st_gchb

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cff() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def entries() -> dict[str, dict[str, str]]:
    """Fields of each entry, by its kind, without the braces that keep capitals."""
    found = {}
    for kind, body in re.findall(r"^@(\w+)\{\w+,\n(.*?)^\}$", st_gchb.citation(), re.MULTILINE | re.DOTALL):
        fields = re.findall(r"^  (\w+) = \{(.*)\},$", body, re.MULTILINE)
        found[kind] = {name: value.strip("{}").replace("\\&", "&") for name, value in fields}
    return found


def test_the_paper_is_that_of_citation_cff(cff):
    paper, said = entries()["article"], cff["preferred-citation"]
    names = [f"{one['family-names']}, {one['given-names']}" for one in said["authors"]]
    assert (paper["title"], paper["author"].split(" and ")) == (said["title"], names)
    assert paper["year"] == str(said["year"])
    assert said["identifiers"] == [{"type": "other", "value": f"arXiv:{paper['eprint']}"}]
    assert paper["eprint"] in said["url"]
    assert paper["eprint"] in paper["journal"]


def test_the_package_is_that_of_citation_cff(cff):
    package = entries()["software"]
    assert package["title"] == cff["title"]
    assert package["author"] == cff["authors"][0]["name"]
    assert (package["version"], package["license"]) == (str(cff["version"]), cff["license"])
    assert package["version"] == st_gchb.__version__


def test_it_is_bibtex():
    text = st_gchb.citation()
    assert sorted(entries()) == ["article", "software"]
    assert text.count("{") == text.count("}")
    assert not re.search(r"(?<!\\)&", text)


@pytest.mark.tissue
def test_the_paper_is_the_one_that_lies_beside_the_repository(cff):
    root = Path(os.environ.get("ST_GCHB_SHARED", ROOT.parent / "shared"))
    path = root / "paper" / "st-gchb.txt"
    if not path.exists():
        pytest.skip(f"the paper's text is not here: {path}")
    text, said = path.read_text(encoding="utf-8"), cff["preferred-citation"]
    head = text.split("**Abstract.**")[0]
    assert said["title"] in head
    names = [f"{one['given-names']} {one['family-names']}" for one in said["authors"]]
    assert f"{', '.join(names[:-1])}, and {names[-1]}" in head
