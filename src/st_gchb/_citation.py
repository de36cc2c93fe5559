"""BibTeX of the paper and of the package.

``CITATION.cff`` owns these facts. It is not part of the installed package, so they are repeated here, and a test
compares both.
"""

from __future__ import annotations

from st_gchb import __version__

_PAPER = {
    "title": "{Spatially Resolved Gene Expression Prediction from Histology via Multi-view Graph Contrastive Learning "
    "with HSIC-bottleneck Regularization}",
    "author": "Chi, Changxi and Shi, Hang and Zhu, Qi and Zhang, Daoqiang and Shao, Wei",
    "year": "2024",
    "eprint": "2406.12229",
    "archivePrefix": "arXiv",
}
_PACKAGE = {
    "title": "{st-gchb: gene expression from H&E}",
    "author": "{The st-gchb developers}",
    "version": __version__,
    "license": "BSD-3-Clause",
}


def citation() -> str:
    r"""Return the citation of the paper and of this version of the package, as BibTeX.

    Returns
    -------
    str
        Two entries: ``chi2024stgchb``, the paper of the method, and ``stgchb``, the package.

    Examples
    --------
    >>> import st_gchb
    >>> print(st_gchb.citation().splitlines()[0])
    @article{chi2024stgchb,
    """
    paper = _entry("article", "chi2024stgchb", _PAPER | {"journal": f"arXiv preprint arXiv:{_PAPER['eprint']}"})
    return f"{paper}\n\n{_entry('software', 'stgchb', _PACKAGE)}\n"


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    # An ampersand ends a column in LaTeX.
    lines = (f"  {name} = {{{value.replace('&', chr(92) + '&')}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{''.join(lines)}}}"
