"""The only file with private or experimental names of other packages."""

from __future__ import annotations

from typing import Any


def parse_device_args(*arguments: Any, **options: Any) -> Any:
    """scvi-tools' own reading of ``accelerator`` and ``devices``, so that ``load`` takes what ``train`` takes."""
    from scvi.model._utils import parse_device_args as parse

    return parse(*arguments, **options)
