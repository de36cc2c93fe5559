"""Trainings that are short, for tests of what is made of trained models and not of how good these are."""

from __future__ import annotations

from dataclasses import replace

import pytest


def shorten_trainings(patch: pytest.MonkeyPatch) -> None:
    """Let every preset train for one epoch, after one of pretraining where it has some."""
    from st_gchb.model import PRESETS

    for name, preset in PRESETS.items():
        short = replace(preset, max_epochs=1, pretrain_epochs=min(preset.pretrain_epochs, 1))
        patch.setitem(PRESETS, name, short)
