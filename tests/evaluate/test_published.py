"""Published methods as methods of an evaluation: what they are shown, and what is checked before they are trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from st_gchb._errors import (
    DeviceError,
    ImageError,
    InputError,
    MissingFileError,
    MissingKeyError,
    ScaleError,
    SliceError,
    STGCHBError,
)
from st_gchb.baselines import BASELINES, Baseline, TrainingSettings, spot_batches
from st_gchb.evaluate import (
    DEFAULT_METHODS,
    METHODS,
    PUBLISHED,
    describe,
    evaluate,
    evaluate_fold,
    published,
    spots_of,
)

from .conftest import QUICK, Spy


@dataclass(frozen=True)
class ColorSettings(TrainingSettings):
    patch_um: float = 60.0
    window: int = 1


class Color(Baseline):
    """A linear layer on the mean color of the patch."""

    name = "color"
    presets = {"small": ColorSettings(epochs=2, lr=0.02), "published": ColorSettings(choose_epochs=False)}
    needs_pixels = True

    def check(self, spots):
        super().check(spots)
        least = min(len(rows) for rows in spots.by_slice)
        if least < self.settings.window:
            raise SliceError(f"{self.name}: a slice has {least} spots; expected {self.settings.window}.")

    def build(self, spots):
        return nn.Linear(3, spots.targets.shape[1])

    def batches(self, spots, rng):
        return spot_batches(spots, self.settings.batch_size, rng)

    def _color(self, spots, rows):
        return self.tensor(spots.pixels(8, self.settings.patch_um)[rows].mean((1, 2)).astype(np.float32) / 255)

    def loss(self, network, spots, rows, rng):
        return ((network(self._color(spots, rows)) - self.tensor(spots.targets[rows])) ** 2).mean()

    def infer(self, network, spots):
        return network(self._color(spots, np.arange(len(spots)))).numpy()


@pytest.fixture
def color(monkeypatch):
    """A made-up method that learns from pixels, known by name; every training of it is counted."""
    trained = []
    fit = Color.fit
    monkeypatch.setattr(Color, "fit", lambda self, spots: trained.append(spots) or fit(self, spots))
    monkeypatch.setitem(BASELINES, "color", Color)
    for preset in Color.presets:
        name = "color" if preset == "small" else "color-published"
        monkeypatch.setitem(METHODS, name, partial(published, name="color", preset=preset))
    return trained


@pytest.fixture
def task(tissue):
    spy = Spy()
    evaluate_fold(tissue, "S2", methods={"spy": spy}, **QUICK)
    return spy.tasks[0]


# ---- What a published method is shown ----


def test_training_spots_have_expression_of_the_panel_and_held_out_ones_have_none(tissue, task):
    train, test = spots_of(task)
    assert (len(train), len(test)) == (task.train.n_obs, task.test.n_obs)
    assert list(dict.fromkeys(train.slices)) == ["S1", "S3"]
    own = tissue[tissue.obs["slice"] != "S2", task.panel]
    np.testing.assert_array_equal(train.counts, own.X.toarray())
    np.testing.assert_array_equal(train.targets, task.targets())
    assert train.counts.dtype == train.targets.dtype == np.float32
    assert test.counts is None
    assert test.targets is None


def test_both_parts_have_features_positions_graph_and_pixels(tissue, task):
    for spots, keep in zip(spots_of(task), (tissue.obs["slice"] != "S2", tissue.obs["slice"] == "S2"), strict=True):
        own = tissue[keep]
        np.testing.assert_array_equal(spots.features, own.obsm["X_patch"])
        np.testing.assert_array_equal(spots.positions, own.obsm["spatial"])
        assert spots.graph.shape == (len(spots), len(spots))
        rows, cols = spots.graph.nonzero()
        assert (spots.slices[rows] == spots.slices[cols]).all()
        image = own.uns["spatial"][spots.slices[0]]["images"]["hires"]
        x, y = own.obsm["spatial"][0].round().astype(int)
        patch = spots.pixels(8, 30.0)[np.array([0])][0]
        expected = np.asarray(image)[y - 15 : y + 15, x - 15 : x + 15].mean((0, 1))
        assert np.abs(patch.mean((0, 1)) - expected).max() < 20


def test_pixels_are_kept_for_the_next_fold_and_seed(task, monkeypatch):
    rows = np.arange(task.train.n_obs)
    first = task.patches(task.train, out_px=9, patch_um=45)[rows]
    assert first.shape == (len(rows), 9, 9, 3)
    monkeypatch.setattr("st_gchb.pp.patches._pixels.read_patches", None)
    np.testing.assert_array_equal(task.patches(task.train, out_px=9, patch_um=45)[rows], first)
    with pytest.raises(TypeError):
        task.patches(task.train, out_px=9, patch_um=46)[rows]


def test_patches_by_their_side_in_px(task):
    """A pixel of this tissue is 1 µm wide."""
    rows = np.arange(task.test.n_obs)
    by_px, by_um = (task.patches(task.test, out_px=6, **side)[rows] for side in ({"patch_px": 40}, {"patch_um": 40}))
    np.testing.assert_array_equal(by_px, by_um)
    assert (task.patches(task.test, out_px=6, patch_um=80)[rows] != by_um).any()
    with pytest.raises(ScaleError, match="no larger than the slide"):
        task.patches(task.test, out_px=6, patch_um=2000)


# ---- Methods by name ----


def test_every_published_method_has_a_name_for_each_preset():
    assert set(PUBLISHED) == {*BASELINES, *(f"{name}-published" for name in BASELINES)}
    assert set(PUBLISHED) <= set(METHODS)
    assert not set(PUBLISHED) & set(DEFAULT_METHODS)


def test_a_published_method_is_trained_and_scored(tissue, color):
    result = evaluate(tissue, methods=["color", "mean"], **QUICK)
    assert len(result.scores) == 6
    assert len(color) == 3
    assert [len(spots) for spots in color] == [tissue.n_obs - n for n in tissue.obs["slice"].value_counts(sort=False)]
    assert result.table()["AG"]["mean"]["color"] != 0


@pytest.mark.parametrize(("given", "near"), [("colour", "'color'"), ("rigde", "'ridge'"), ("Knn", "'knn'")])
def test_an_unknown_name_tells_the_nearest(tissue, color, given, near):
    with pytest.raises(InputError, match=f"'{given}'.*did you mean {near}.*known: .*'mean'"):
        evaluate(tissue, methods=["mean", given], **QUICK)


def test_a_name_like_no_other_tells_all(tissue):
    with pytest.raises(InputError, match=r"\['zzzz'\]; known: \['default'"):
        evaluate(tissue, methods=["zzzz"], **QUICK)


# ---- Kept runs ----


def test_settings_tell_methods_apart(color, monkeypatch):
    small, wide = METHODS["color"], partial(METHODS["color"], lr=0.5)
    described = [describe(method) for method in (small, wide, METHODS["color-published"])]
    assert None not in described
    assert len({str(one) for one in described}) == 3
    assert described[0]["settings"]["lr"] == 0.02
    monkeypatch.setattr(Color, "presets", Color.presets | {"small": ColorSettings(epochs=3)})
    assert describe(small) != described[0]


def test_finished_runs_are_taken(tissue, color, tmp_path):
    first = evaluate_fold(tissue, "S1", methods=["color"], runs_dir=tmp_path, **QUICK)
    again = evaluate_fold(tissue, "S1", methods=["color"], runs_dir=tmp_path, **QUICK)
    assert len(color) == 1
    assert again.scores.equals(first.scores)


# ---- Before anything is trained ----


def no_image(adata):
    del adata.uns["spatial"]["S3"]["images"]
    return adata


def no_library(adata):
    del adata.uns["spatial"]
    return adata


def lost_file(adata):
    library = adata.uns["spatial"]["S3"]
    library["images"] = {}
    library["metadata"] = {"source_image_path": "/no/such/slide.tif"}
    return adata


def unknown_scale(adata):
    """Neither recorded, nor to be derived from the diameter of a spot or the pitch of an array."""
    library = adata.uns["spatial"]["S3"]
    library["scalefactors"] = {"tissue_hires_scalef": 1.0}
    library["metadata"] = {}
    del adata.obs["array_row"], adata.obs["array_col"]
    return adata


BAD = {
    "no image": (no_image, {}, (ImageError, MissingKeyError), "S3"),
    "no image of any": (no_library, {}, (ImageError, MissingKeyError), "image"),
    "no file": (lost_file, {}, MissingFileError, "no/such/slide"),
    "no size of a pixel": (unknown_scale, {}, ScaleError, "'S3'.*size of a pixel is not known"),
    "a patch larger than the slide": (None, {"patch_um": 9e4}, ScaleError, "no larger than the slide|at most"),
}


@pytest.mark.parametrize("name", BAD)
def test_images_are_looked_for_before_anything_is_trained(tissue, color, tmp_path, name):
    spoil, settings, error, message = BAD[name]
    adata = tissue if spoil is None else spoil(tissue)
    spy = Spy()
    methods = {"spy": spy, "mine": partial(METHODS["color"], **settings)}
    with pytest.raises(STGCHBError, match=f"'mine' learns from the pixels.*({message})") as caught:
        evaluate(adata, methods=methods, runs_dir=tmp_path / "runs", **QUICK)
    assert isinstance(caught.value, error)
    assert (spy.tasks, color) == ([], [])
    assert not (tmp_path / "runs").exists()


def test_methods_that_read_no_pixels_need_no_image(tissue, color, monkeypatch):
    monkeypatch.setattr(Color, "needs_pixels", False)
    with pytest.raises(STGCHBError, match="image"):
        # Its training does read them here: the check at the door has let it pass.
        evaluate_fold(no_image(tissue), "S3", methods=["color"], **QUICK)
    assert len(color) == 1


def test_slices_too_small_for_a_method_are_told_before_anything_is_trained(tissue, color, tmp_path):
    """S3 is made small: each fold that trains on it is refused, and the one that holds it out is not."""
    small = tissue[(tissue.obs["slice"] != "S3") | (np.arange(tissue.n_obs) % 4 == 0)].copy()
    spy = Spy()
    methods = {"spy": spy, "mine": partial(METHODS["color"], window=30)}
    with pytest.raises(SliceError, match=r"Fold 'S1', method 'mine': color: a slice has 1\d spots.*leave this method"):
        evaluate(small, methods=methods, runs_dir=tmp_path / "runs", **QUICK)
    assert (spy.tasks, color) == ([], [])
    assert not (tmp_path / "runs").exists()
    evaluate_fold(small, "S3", methods=methods, **QUICK)
    assert len(color) == 1


@pytest.mark.parametrize("name", BASELINES)
def test_images_are_asked_for_where_a_method_reads_them(tissue, name):
    """The check at the door, with the first message that it has, or none."""
    baseline = BASELINES[name]("small", device="cpu")
    adata = no_image(tissue)
    spy = Spy()
    if baseline.reads_pixels:
        with pytest.raises(STGCHBError, match=f"'{name}' learns from the pixels of patches.*S3"):
            evaluate_fold(adata, "S3", methods={"spy": spy, name: METHODS[name]}, **QUICK)
        assert spy.tasks == []
    else:
        assert evaluate_fold(adata, "S3", methods={name: partial(METHODS[name], epochs=1)}, **QUICK).scores["AG"].size


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"preset": "smal"}, "unknown preset 'smal'.*'small'"), ({"epoch": 3}, "unknown setting 'epoch'.*'epochs'")],
)
def test_presets_and_settings_are_checked_before_anything_is_trained(tissue, color, settings, message):
    spy = Spy()
    with pytest.raises(InputError, match=message):
        evaluate(tissue, methods={"spy": spy, "mine": partial(METHODS["color"], **settings)}, **QUICK)
    assert spy.tasks == []


def test_the_published_preset_asks_for_a_gpu(tissue, color):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    spy = Spy()
    methods = {"spy": spy, "color-published": METHODS["color-published"]}
    with pytest.raises(DeviceError, match=r"color: preset='published'.*device='cpu'"):
        evaluate_fold(tissue, "S1", methods=methods, **QUICK | {"device": "auto"})
    assert (spy.tasks, color) == ([], [])
