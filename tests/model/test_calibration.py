"""What is flagged, and how expected errors become confidence."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from st_gchb.model import Calibration, HeldOut, calibrate, calibration_folds, choice_folds, fit_appearance

RNG = np.random.default_rng(0)
SLICES = np.repeat(["A", "B", "C"], 100)
TRUTH = sparse.csr_matrix(RNG.random((300, 5)).astype(np.float32))
DISTANCE = RNG.normal(1.0, 0.1, 300)


@pytest.fixture(scope="module")
def calibration():
    """Error grows with the spread of the neighbors, and with nothing else."""
    spread = RNG.random(300)
    predictors = np.column_stack([RNG.random(300), spread, DISTANCE, RNG.random(300)])

    def predict(rows):
        prediction = TRUTH[rows].toarray() + spread[rows, None]
        return HeldOut(prediction, prediction, predictors[rows])

    folds = [np.flatnonzero(SLICES == name) for name in "ABC"]
    return calibrate(folds, predict, TRUTH, SLICES)


def predictors_at(distance, spread=0.5):
    other = np.full(len(distance), 0.5)
    return np.column_stack([other, np.broadcast_to(spread, other.shape), distance, other])


def test_a_far_spot_is_flagged_alone(calibration):
    distance = np.full(50, 1.0)
    distance[7] = 3.0
    flagged = calibration.outlier(predictors_at(distance), np.full(50, "Q"))
    assert np.flatnonzero(flagged).tolist() == [7]
    assert calibration.outlier_distance == pytest.approx(np.quantile(DISTANCE, 0.99))


def test_a_slide_that_lies_off_is_flagged_as_a_whole(calibration):
    medians = [np.median(DISTANCE[SLICES == name]) for name in "ABC"]
    assert calibration.outlier_slide == pytest.approx(1.4 * max(medians))
    slices = np.repeat(["near", "off"], 40)
    distance = np.repeat([1.0, 1.5], 40)
    distance[40:50] = 1.0
    flagged = calibration.outlier(predictors_at(distance), slices)
    assert not flagged[:40].any()
    assert flagged[40:].all()


def test_a_handful_of_spots_is_no_slide():
    """Nineteen spots beyond the limit of slides, but not of spots, are left; twenty are flagged."""
    limits = {"outlier_distance": 5.0, "outlier_slide": 2.0}
    arrays = {name: np.zeros(4) for name in ("center", "scale", "coefficients", "expected_errors", "expected_pcc")}
    calibration = Calibration(**limits, **arrays)
    for n, expected in ((19, False), (20, True)):
        assert (calibration.outlier(predictors_at(np.full(n, 3.0)), np.full(n, "Q")) == expected).all()


def test_confidence_falls_with_expected_error(calibration):
    confidence = calibration.confidence(predictors_at(np.ones(9), spread=np.linspace(0, 1, 9)), np.full(9, "Q"))
    assert (np.diff(confidence) < 0).all()
    assert confidence[0] > 0.95
    assert confidence[-1] < 0.05


def test_appearance_sees_what_the_reference_never_varies_in():
    rng = np.random.default_rng(1)
    reference = np.hstack([rng.normal(size=(200, 40)) @ rng.normal(size=(40, 60)), rng.normal(size=(200, 3)) * 0.01])
    look = fit_appearance(reference.astype(np.float32), seed=0)
    own = look(reference)
    assert own.shape == (200, 33)
    np.testing.assert_allclose(own[:, :32].std(0), 1 / np.sqrt(32), rtol=0.02)
    assert own[:, 32].mean() == pytest.approx(1.0, rel=0.01)
    moved = reference.copy()
    moved[:, -1] += 1.0
    assert (look(moved)[:, 32] > 2 * own[:, 32]).all()


def test_distances_do_not_grow_with_the_number_of_components():
    """The folds that set the limit have fewer spots than the reference, and so fewer components."""
    x = np.random.default_rng(2).normal(size=(400, 60)).astype(np.float32)
    few, many = (np.linalg.norm(fit_appearance(x[:n], seed=0)(x), axis=1).mean() for n in (60, 400))
    assert few == pytest.approx(many, rel=0.15)


def test_confidence_fades_beyond_the_limits(calibration):
    """Nothing was learned of the error out there: not 1.0 because a sign happens to point that way."""
    near, far = (
        calibration.confidence(predictors_at(np.full(30, d), spread=0.0), np.full(30, "Q")) for d in (1.0, 1e4)
    )
    assert near.min() > 0.9
    assert far.max() < 1e-3
    limit = calibration.outlier_distance
    edge = calibration.confidence(predictors_at(np.array([limit, 2 * limit]), spread=0.0), np.full(2, "Q"))
    assert edge[1] <= edge[0] / 2


def test_halves_of_a_slice_have_spots_wherever_they_lie():
    one = np.full(5, "A")
    lines = (np.column_stack([np.full(5, 3.0), np.arange(5.0)]), np.column_stack([[0, 0, 0, 0, 9.0], np.arange(5.0)]))
    for coordinates in (*lines, lines[0][:, ::-1], np.zeros((5, 2))):
        folds = calibration_folds(one, coordinates)
        assert sorted(np.concatenate(folds)) == [0, 1, 2, 3, 4]
        assert min(map(len, folds)) >= 2


def test_settings_are_chosen_on_slices_or_on_quadrants_of_a_single_one():
    x, y = np.meshgrid(np.arange(6.0), np.arange(4.0))
    centers = np.column_stack([x.ravel(), y.ravel()])
    quadrants = choice_folds(np.full(24, "A"), centers)
    assert [sorted(map(tuple, centers[rows])) for rows in quadrants] == [
        [(i, j) for i in near for j in side]
        for near in ((0.0, 1.0, 2.0), (3.0, 4.0, 5.0))
        for side in ((0.0, 1.0), (2.0, 3.0))
    ]
    line = choice_folds(np.full(6, "A"), np.column_stack([np.arange(6.0), np.zeros(6)]))
    assert [rows.tolist() for rows in line] == [[0, 1, 2], [3, 4, 5]]
    slices = np.repeat(["A", "B"], 12)
    assert [rows.tolist() for rows in choice_folds(slices, centers)] == [list(range(12)), list(range(12, 24))]
