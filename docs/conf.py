"""Configuration of the site."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from importlib.metadata import metadata
from pathlib import Path
from typing import Annotated, Any, get_origin

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.pycode import ModuleAnalyzer
from sphinx_autodoc_typehints import format_annotation

HERE = Path(__file__).parent
LONGEST_WHOLE_CELL = len("0.1234 ± 0.1234")
MANY_COLUMNS = 6

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
exclude_patterns = ["_build", "**.ipynb_checkpoints", "results/*/*.md", "user-guide/*/*.md"]

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

# Modules where other projects define their classes, and the public ones that their inventories list.
PUBLIC_MODULES = {
    "anndata._core.anndata": "anndata",
    "distributed.client": "distributed",
    "matplotlib.axes._axes": "matplotlib.axes",
    "pandas.core.frame": "pandas",
    "pandas.core.indexes.base": "pandas",
    "spatialdata._core.spatialdata": "spatialdata",
    "torch.nn.modules.module": "torch.nn",
}


def typehints_fixup_module_name(module: str) -> str:
    """Name the public module of a class."""
    return PUBLIC_MODULES.get(module, module)


def typehints_formatter(annotation: Any, config: Any) -> str | None:
    """Show the type of an annotated argument without its limits, which the docstring states."""
    return format_annotation(annotation.__origin__, config) if get_origin(annotation) is Annotated else None


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
    # Functions among the options above cannot be kept for the next build, which then reads all pages.
    "config.cache",
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
    "distributed": "https://distributed.dask.org/en/stable/",
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
html_css_files = ["formula.css", "table.css"]
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


def find_docstring(_app: Any, what: str, name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Give a variable the docstring below its definition: autodoc looks for it in the module that hands it on."""
    if what != "data":
        return
    room, _, own = name.rpartition(".")
    for module in [module for module in sys.modules if module.startswith(f"{room}.")]:
        if found := ModuleAnalyzer.for_module(module).find_attr_docs().get(("", own)):
            lines[:] = found


def keep_cells_whole(_app: Any, doctree: nodes.document) -> None:
    """Keep short cells of tables on one line, such as a mean and its deviation, and mark tables of many columns."""
    for table in doctree.findall(nodes.table):
        if any(len(row) >= MANY_COLUMNS for row in table.findall(nodes.row)):
            table["classes"].append("wide")
        for text in [text for body in table.findall(nodes.tbody) for text in body.findall(nodes.Text)]:
            alone = isinstance(text.parent.parent, nodes.entry) and len(text.parent) == 1
            if alone and len(text) <= LONGEST_WHOLE_CELL:
                text.parent.replace(text, nodes.Text(text.replace(" ", "\N{NO-BREAK SPACE}")))


def setup(app: Any) -> None:
    """Register what this file adds to Sphinx."""
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.connect("autodoc-process-docstring", find_docstring)
    app.connect("doctree-read", keep_cells_whole)
    copy_tutorials()
