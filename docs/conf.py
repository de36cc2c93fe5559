"""Configuration of the site."""

from __future__ import annotations

import os
import shutil
import warnings
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
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
# Tables are included by their pages.
exclude_patterns = ["_build", "**.ipynb_checkpoints", "study/*.md", "stain/*.md", "speed/*.md", "last_stage/*.md"]

autosummary_generate = True
autosummary_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
typehints_defaults = "braces"
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
    # Widgets of progress bars have no picture.
    "mystnb.unknown_mime_type",
]

# Links to other projects' pages need the network, and the site builds without one: ST_GCHB_DOCS_LINKS=1 turns them on.
if os.environ.get("ST_GCHB_DOCS_LINKS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
        "spatialdata": ("https://spatialdata.scverse.org/en/stable/", None),
        "squidpy": ("https://squidpy.readthedocs.io/en/stable/", None),
        "torch": ("https://pytorch.org/docs/stable/", None),
    }

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
    shutil.rmtree(HERE / "tutorials", ignore_errors=True)
    (HERE / "tutorials").mkdir()
    for notebook in sorted((HERE.parent / "tutorials").glob("*.ipynb")):
        shutil.copy2(notebook, HERE / "tutorials" / notebook.name)


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
