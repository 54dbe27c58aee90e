"""The map's coordinates: those of a plain PCA, whatever the batches, and the same every time."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from midsight.errors import MidsightError
from midsight.probes.pca import principal_plane


def in_batches(vectors, size):
    return lambda: (vectors[start : start + size] for start in range(0, len(vectors), size))


@pytest.fixture(scope="module")
def vectors():
    """Three directions of different strength; one dimension in the thousands, one constant."""
    rng = np.random.default_rng(0)
    made = rng.standard_normal((300, 3)) * [4, 2, 1] @ rng.standard_normal((3, 20)) + rng.standard_normal((300, 20))
    made[:, 3] = 5000 + 300 * made[:, 3]
    made[:, 7] = 2.5
    return made.astype(np.float32)


def test_coordinates_are_those_of_scikit_learn_up_to_the_sign(vectors):
    plane = principal_plane(in_batches(vectors, 37), "q")
    scaled = StandardScaler().fit_transform(vectors.astype(np.float64))
    pca = PCA(2, svd_solver="full").fit(scaled)
    expected = pca.transform(scaled)
    found = plane.coordinates(vectors)
    signs = np.sign((found * expected).sum(axis=0))
    assert np.abs(found - signs * expected).max() < 1e-4 * np.abs(expected).max()
    assert plane.shares == pytest.approx(pca.explained_variance_ratio_, rel=1e-6)
    assert plane.rows == 300
    assert plane.axes[:, 7].tolist() == [0, 0]


def test_batches_and_rows_without_a_vector_change_nothing(vectors):
    whole = principal_plane(in_batches(vectors, 300), "q")
    with_missing = np.concatenate([vectors[:100], np.full((5, 20), np.nan, np.float32), vectors[100:]])
    split = principal_plane(in_batches(with_missing, 7), "q")
    assert np.abs(split.coordinates(vectors) - whole.coordinates(vectors)).max() < 1e-4
    assert np.isnan(split.coordinates(with_missing)[100:105]).all()
    assert split.rows == 300
    assert np.array_equal(principal_plane(in_batches(vectors, 300), "q").axes, whole.axes)


def test_one_dimension_has_one_coordinate():
    plane = principal_plane(in_batches(np.array([[1.0], [2.0], [6.0]], np.float32), 2), "q")
    assert plane.coordinates(np.array([[3.0]])).tolist() == [[0, 0]]
    assert plane.shares == pytest.approx((1, 0))


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (np.ones((5, 4), np.float32), "In the column q all rows are equal"),
        (np.ones((1, 4), np.float32), "The column q has fewer than two vectors"),
        (np.full((5, 4), np.nan, np.float32), "fewer than two vectors"),
        (np.ones((0, 4), np.float32), "fewer than two vectors"),
    ],
)
def test_what_has_no_map_says_why(made, problem):
    with pytest.raises(MidsightError, match=problem):
        principal_plane(in_batches(made, 2), "q")
