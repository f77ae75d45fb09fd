"""The scikit-learn transformer: what it takes, what it gives, what it refuses."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from wavescat.scattering.estimators import ScatteringTransformer


def _photos(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def test_colours_last_are_asked_for():
    X = _photos(2, 16, 20, 3)
    with pytest.raises(ValueError, match=r"look like \(H, W, C\): set channels='last'"):
        ScatteringTransformer().fit(X)
    with pytest.raises(ValueError, match="channels must be 'first', 'last' or None, got 'end'"):
        ScatteringTransformer(channels="end").fit(X)
    last, first = ScatteringTransformer(L=2, channels="last"), ScatteringTransformer(L=2)
    expected = first.fit_transform(X.transpose(0, 3, 1, 2))
    assert np.array_equal(last.fit_transform(X), expected)
    rows = ScatteringTransformer(L=2, channels="last", shape=(16, 20, 3))
    assert np.array_equal(rows.fit_transform(X.reshape(2, -1)), expected)
    with pytest.raises(ValueError, match="set channels='last'"):
        ScatteringTransformer(shape=(16, 20, 3)).fit(X.reshape(2, -1))


def test_computed_in_the_images_own_precision():
    X = _photos(3, 16, 16, dtype=np.float64)
    T = ScatteringTransformer(L=2).fit(X)
    exact = T.scattering_.double()(torch.from_numpy(X[:, None])).flatten(1).numpy()
    T = ScatteringTransformer(L=2).fit(X)
    assert T.transform(X).dtype == np.float64 and np.abs(T.transform(X) - exact).max() < 1e-12
    assert T.transform(X.astype(np.float32)).dtype == np.float32
    assert np.array_equal(pickle.loads(pickle.dumps(T)).transform(X), T.transform(X))
    assert np.array_equal(clone(T).fit(X).transform(X), T.transform(X))


@pytest.mark.parametrize(
    "form",
    [lambda X: X.tolist(), list, torch.from_numpy, lambda X: [torch.from_numpy(x) for x in X]],
    ids=["nested", "arrays", "tensor", "tensors"],
)
def test_array_likes(form):
    X = _photos(3, 16, 16, dtype=np.float64)
    T = ScatteringTransformer(L=2).fit(form(X))
    assert np.array_equal(T.transform(form(X)), T.transform(X))
    with pytest.raises(ValueError, match=r"one shape, got \(16, 16\), \(16, 20\)"):
        T.fit([X[0], _photos(16, 20)])


def test_names_of_features_are_checked():
    X = pd.DataFrame(_photos(2, 256), columns=[f"pixel{i}" for i in range(256)])
    T = ScatteringTransformer(L=2, shape=(16, 16)).set_output(transform="pandas")
    assert list(T.fit_transform(X).columns) == list(T.get_feature_names_out())
    assert len(T.get_feature_names_out(X.columns)) == 9 * 16
    with pytest.raises(ValueError, match="input_features is not equal to feature_names_in_"):
        T.get_feature_names_out(["a"] * 256)
    plain = ScatteringTransformer(L=2, shape=(16, 16)).fit(X.to_numpy())
    with pytest.raises(ValueError, match="number of features"):
        plain.get_feature_names_out(["a", "b"])
