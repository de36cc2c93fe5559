"""Configuration of the site."""

from __future__ import annotations

import os
import shutil
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

HERE = Path(__file__).parent

# Of Python code that is not ours, and said once a function.
warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", category=PendingDeprecationWarning)

info = metadata("st-gchb")
project = info["Name"]
author = "the st-gchb developers"
project_copyright = f"2026, {author}"
version = release = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
# Tables are included by their pages.
exclude_patterns = ["_build", "**.ipynb_checkpoints", "results/*/*.md"]

autosummary_generate = True
autosummary_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
typehints_defaults = "braces"
typehints_document_rtype_none = False
always_use_bars_union = True

# Notebooks carry their output: they are run by the tests, not by the site.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# MathML, which browsers draw themselves: the pages need no script from elsewhere, on screen or on paper.
html_math_renderer = "mathml"

suppress_warnings = [
    # Third-party types that are imported for the checker of types alone.
    "sphinx_autodoc_typehints.forward_reference",
    "sphinx_autodoc_typehints.guarded_import",
    # Widgets of progress bars have no static output.
    "mystnb.unknown_mime_type",
]

# Other projects' pages. Sphinx warns of an object inventory that it cannot fetch, and -W makes an error of that, so
# inventories that do not answer are left out: names of theirs are then no links. ST_GCHB_DOCS_LINKS=0 asks for none
# (no network, no wait); ST_GCHB_DOCS_LINKS=1 takes all, so that one that cannot be fetched fails the build.
PROJECTS = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "python": "https://docs.python.org/3/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "scvi": "https://docs.scvi-tools.org/en/stable/",
    "spatialdata": "https://spatialdata.scverse.org/en/stable/",
    "squidpy": "https://squidpy.readthedocs.io/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}
LINKS = os.environ.get("ST_GCHB_DOCS_LINKS", "auto")
intersphinx_timeout = 30


def answers(url: str) -> bool:
    """Ask whether a project's object inventory can be fetched within three seconds."""
    try:
        with urllib.request.urlopen(f"{url}objects.inv", timeout=3) as response:
            return response.read(16).startswith(b"# Sphinx")
    except (OSError, HTTPException):
        return False


def choose_projects() -> dict[str, tuple[str, None]]:
    """Give the projects whose names become links."""
    if LINKS not in {"0", "1", "auto"}:
        raise ValueError(f"ST_GCHB_DOCS_LINKS={LINKS!r}; expected 0 (no links), 1 (all), or auto (those that answer)")
    chosen = {} if LINKS == "0" else dict(PROJECTS)
    if LINKS == "auto":
        with ThreadPoolExecutor() as pool:
            found = dict(zip(PROJECTS, pool.map(answers, PROJECTS.values()), strict=True))
        chosen = {name: url for name, url in PROJECTS.items() if found[name]}
        if silent := [name for name in PROJECTS if not found[name]]:
            print(f"no links to {', '.join(silent)}: the object inventories do not answer")
    return {name: (url, None) for name, url in chosen.items()}


intersphinx_mapping = choose_projects()

html_theme = "sphinx_book_theme"
html_title = "st-gchb"
html_static_path = ["_static"]
html_css_files = ["formula.css"]
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "show_toc_level": 2,
    "use_download_button": False,
}
html_show_sourcelink = False


def copy_tutorials() -> None:
    """Bring the notebooks under the site's root, which is where Sphinx looks for pages."""
    there = HERE / "getting-started" / "tutorials"
    shutil.rmtree(there, ignore_errors=True)
    there.mkdir()
    for notebook in sorted((HERE.parent / "tutorials").glob("*.ipynb")):
        shutil.copy2(notebook, there / notebook.name)


def write_math(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Turn a formula in TeX into MathML."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Register what this file adds to Sphinx."""
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    copy_tutorials()
