"""Features of several encoders and patch sizes: how they are described, stored and read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings, strategies as st

from st_gchb.errors import EncoderError, InputError, MissingKeyError
from st_gchb.pp import FeatureSet, FeatureSpec
from st_gchb.pp.patches import feature_parts

TEXTURE = FeatureSpec("texture", "default", "e3b0", 80.0, None, 4, 107)
MOBILENET = FeatureSpec("mobilenet_v2", "/data/w.pth", "ab12", 80.0, None, 4, 1280)


def specs(*encoders: FeatureSpec, sizes: tuple[float, ...] = (80.0, 150.0, 300.0)) -> list[FeatureSpec]:
    """Return each encoder at each size."""
    return [replace(one, patch_um=size) for one in encoders for size in sizes]


BOTH = FeatureSet(specs(MOBILENET, TEXTURE))


def test_parts_know_their_columns_encoder_and_size() -> None:
    """Columns are side by side, encoder by encoder, and cover the matrix."""
    assert [(part.encoder, part.patch_um) for part in BOTH.parts] == [
        (encoder, um) for encoder in ("mobilenet_v2", "texture") for um in (80.0, 150.0, 300.0)
    ]
    assert BOTH.names[0] == "mobilenet_v2, 80 µm"
    assert [one.start for one in BOTH.columns] == [0, 1280, 2560, 3840, 3947, 4054]
    assert (BOTH.columns[-1].stop, BOTH.n_features, BOTH.sizes, len(BOTH)) == (4161, 4161, [80.0, 150.0, 300.0], 6)
    assert [one.encoder for one in BOTH.encoders] == ["mobilenet_v2", "texture"]


def test_two_weights_of_one_architecture_are_told_apart() -> None:
    """Names of parts are unique."""
    found = FeatureSet(specs(MOBILENET, replace(MOBILENET, weights_sha256="cd34"), sizes=(80.0, 150.0)))
    assert found.names[::2] == ["mobilenet_v2 ab12, 80 µm", "mobilenet_v2 cd34, 80 µm"]
    assert len(set(found.names)) == 4


def test_one_part_is_stored_as_its_specification_always_was() -> None:
    """A set of one part is no new format."""
    one = replace(TEXTURE, stain_norm="macenko", stain_target=(1.0, 2.0), precision="bfloat16", feature_maps=True)
    assert FeatureSet([one]).to_dict() == one.to_dict()
    assert FeatureSet.from_uns(one.to_dict()) == FeatureSet([one])


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.floats(1.0, 1e4), min_size=1, max_size=12, unique=True),
    encoders=st.lists(st.sampled_from([MOBILENET, TEXTURE]), min_size=1, max_size=2, unique=True),
    stained=st.booleans(),
)
def test_what_is_stored_is_read_again(sizes: list[float], encoders: list[FeatureSpec], stained: bool) -> None:
    """Through JSON as in a model, and as numpy arrays as in ``uns``."""
    if stained:
        encoders = [replace(one, stain_norm="reinhard", stain_target=(1.0, 2.0, 3.0)) for one in encoders]
    whole = FeatureSet(specs(*encoders, sizes=tuple(sizes)))
    assert FeatureSet.from_uns(json.loads(json.dumps(whole.to_dict()))) == whole
    arrays = {key: np.array(value) if isinstance(value, list) else value for key, value in whole.to_dict().items()}
    assert FeatureSet.from_uns(arrays) == whole


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_files_keep_the_parts(tmp_path: Any, kind: str) -> None:
    """Text and numbers come back from files as arrays."""
    adata = AnnData(obsm={"X_patch": np.zeros((3, BOTH.n_features), np.float32)}, uns={"X_patch": BOTH.to_dict()})
    path = tmp_path / f"a.{kind}"
    getattr(adata, f"write_{kind}")(path)
    again = getattr(anndata, f"read_{kind}")(path)
    assert feature_parts(again, "X_patch") == BOTH


def test_px_are_a_unit_too() -> None:
    """A patch size may be in px of the image."""
    px = FeatureSet([replace(TEXTURE, patch_um=None, patch_px=size) for size in (64.0, 128.0)])
    assert (px.in_px, px.sizes, px.names[1]) == (True, [64.0, 128.0], "texture, 128 px")
    assert FeatureSet.from_uns(px.to_dict()) == px


WRONG: dict[str, list[FeatureSpec]] = {
    "empty": [],
    "size twice": [TEXTURE, TEXTURE],
    "encoder twice": specs(TEXTURE, TEXTURE),
    "not every size": [*specs(MOBILENET), TEXTURE],
    "other order": [MOBILENET, TEXTURE, *specs(MOBILENET, TEXTURE, sizes=(150.0,))],
    "other views": [TEXTURE, replace(TEXTURE, patch_um=150.0, n_views=1)],
    "other stain": [TEXTURE, replace(TEXTURE, patch_um=150.0, stain_norm="macenko", stain_target=(1.0,))],
    "other precision": [TEXTURE, replace(TEXTURE, patch_um=150.0, precision="float16")],
    "both units": [TEXTURE, replace(TEXTURE, patch_um=None, patch_px=150.0)],
    "maps": [replace(one, feature_maps=True) for one in specs(MOBILENET)],
}


@pytest.mark.parametrize("case", WRONG)
def test_parts_that_do_not_belong_together_are_refused(case: str) -> None:
    """A set is what one call of ``embed_patches`` can make."""
    with pytest.raises(InputError, match="FeatureSet"):
        FeatureSet(WRONG[case])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"patch_um": [80.0, 150.0]}, EncoderError, "'patch_um': 2"),
        ({"patch_um": 80.0}, EncoderError, "'patch_um': 1"),
        ({"patch_um": ["a"] * 6}, EncoderError, "patch_um = 'a'"),
        ({"patch_um": [80.0] * 6}, EncoderError, "each patch size once|each encoder at each patch size once"),
        ({"n_features": [1.5] * 6}, EncoderError, "whole number"),
        ({"encoder": []}, EncoderError, "'encoder': 0"),
        ({"patch_px": [1.0] * 6}, MissingKeyError, "patch size"),
    ],
)
def test_damaged_records_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """With the field that is wrong."""
    with pytest.raises(error, match=message):
        FeatureSet.from_uns(BOTH.to_dict() | change)
    without = {key: value for key, value in BOTH.to_dict().items() if key != "weights"}
    with pytest.raises(MissingKeyError, match="weights"):
        FeatureSet.from_uns(without)


def test_one_specification_is_not_read_of_several_parts() -> None:
    """The first part alone would be another matrix."""
    with pytest.raises(EncoderError, match="describes 6 parts.*FeatureSet"):
        FeatureSpec.from_uns(BOTH.to_dict())


def test_columns_are_read_only_of_a_matrix_that_has_them() -> None:
    """A matrix of the user's own has no parts; one that was cut no longer has those of its record."""
    adata = AnnData(obsm={"X_patch": np.zeros((3, 7))})
    assert feature_parts(adata, "X_patch") is None
    adata.uns["X_patch"] = BOTH.to_dict()
    with pytest.raises(EncoderError, match="has 7 columns.*describes 4161.*texture, 300 µm"):
        feature_parts(adata, "X_patch")
    adata.uns["X_patch"] = "texture"
    with pytest.raises(EncoderError, match="is a str"):
        feature_parts(adata, "X_patch")
