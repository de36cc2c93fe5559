"""Commands of the studies: the example in the help is a call that is taken."""

from __future__ import annotations

import importlib
import shlex
import warnings

import pytest

from studies._command import ignore_warnings_of_others


@pytest.mark.parametrize("study", ["ablations", "bare_slide", "dense_map", "last_stage", "stain"])
def test_the_example_of_the_help_is_taken(study):
    parser = importlib.import_module(f"studies.{study}").build_parser()
    line = parser.format_help().rstrip().split("\nexample:\n")[1]
    python, option, module, *arguments = shlex.split(line)
    assert (python, option, module) == ("python", "-m", f"studies.{study}")
    taken = parser.parse_args(arguments)
    assert taken.weights.endswith(".safetensors")
    # The others take the package's default encoders.
    assert study in ("bare_slide", "dense_map") or taken.encoder == "mobilenet_v2"


def test_a_last_stage_is_asked_for_where_one_is_trained():
    texts = [
        importlib.import_module(f"studies.{study}").build_parser().format_help() for study in ("last_stage", "stain")
    ]
    assert ["with a last stage" in text for text in texts] == [True, False]


def test_only_warnings_about_versions_are_ignored():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ignore_warnings_of_others()
        for category in (DeprecationWarning, FutureWarning, SyntaxWarning, UserWarning):
            warnings.warn("old", category, stacklevel=1)
    assert [one.category for one in told] == [UserWarning]
