"""What is counted: right for every type that labels come in, and refused for what are no labels."""

import re

import numpy as np
import pytest
import torch

from wavescat.analysis.calibration import calibration
from wavescat.analysis.error_analysis import class_errors, misclassified
from wavescat.training.metrics import (
    class_numbers,
    confusion,
    consistent,
    r2,
    rmse,
    top_k,
    weighted_r2,
)

K = 20
NUMPY = np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64
TORCH = (
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
)
FORMS = (
    [lambda v, t=t: np.asarray(v).astype(t) for t in NUMPY]
    + [lambda v, t=t: torch.as_tensor(v).to(t) for t in TORCH]
    + [list]
)
PREDICTED, LABELS = (
    [*range(K), 19, 18],
    [*range(K), 18, 18],
)  # of 22 images one is taken for another
PROBABILITIES = np.where(np.arange(K) == np.array(PREDICTED)[:, None], 0.81, 0.01).astype(
    np.float32
)


@pytest.mark.parametrize(
    "form", FORMS, ids=[t.__name__ for t in NUMPY] + [*map(str, TORCH), "list"]
)
def test_labels_of_any_type_are_counted_alike(form):
    predicted, labels = form(PREDICTED), form(LABELS)
    m = confusion(predicted, labels, K)
    assert m.dtype == np.int64 and m.sum() == 22 and m.trace() == 21 and m[18, 19] == 1
    assert class_errors(predicted, labels, [*map(str, range(K))])[0]["class"] == "18"
    assert [r["index"] for r in misclassified(PROBABILITIES, labels)] == [20]
    assert calibration(PROBABILITIES, labels)[0][0]["accuracy"] == pytest.approx(100 * 21 / 22)
    if not isinstance(labels, list):
        assert top_k(torch.from_numpy(PROBABILITIES), torch.as_tensor(labels)) == pytest.approx(
            100 * 21 / 22
        )


def test_booleans_are_two_classes():
    labels = np.array([True, False, True])
    assert confusion(labels, labels, 2).tolist() == [[1, 0], [0, 2]]


@pytest.mark.parametrize(
    "values, message",
    [
        ([0, 20], "labels must be between 0 and 19, got 0 to 20"),
        ([-1, 3], "labels must be between 0 and 19, got -1 to 3"),
        ([0.5, 1.0], "labels must be whole numbers, the classes, got float64"),
        (["cat"], "labels must be whole numbers, the classes"),
        ([[0, 1]], "labels must be one class an image, (N,), got shape (1, 2)"),
    ],
)
def test_what_are_no_labels_is_refused(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        class_numbers(values, K)


def test_as_many_predictions_as_labels():
    with pytest.raises(ValueError, match="expected a prediction for each of the 2 labels, got 3"):
        confusion([0, 1, 2], [0, 1], 3)
    with pytest.raises(ValueError, match="expected a prediction for each of the 2 labels, got 1"):
        class_errors([0], [0, 1], "ab")
    with pytest.raises(ValueError, match="expected a label for each of the 3 images, got 2"):
        top_k(torch.eye(3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="k must be between 1 and the 3 classes, got 5"):
        top_k(torch.eye(3), torch.arange(3), 5)
    for score in (rmse, r2, weighted_r2):
        with pytest.raises(ValueError, match="expected predictions of the targets' shape"):
            score(torch.zeros(3, 1), torch.zeros(3))


def test_nothing_to_count():
    assert (confusion([], [], 3) == 0).all() and np.isnan(top_k(torch.zeros(0, 3), torch.zeros(0)))


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_targets_of_narrow_types_neither_wrap_nor_overflow(dtype):
    targets, predicted = (torch.tensor(v).to(dtype)[:, None] for v in ([100, 0, 50], [110, 0, 50]))
    assert rmse(predicted, targets) == pytest.approx([(100 / 3) ** 0.5])
    assert r2(predicted, targets) == pytest.approx([0.98]) and weighted_r2(
        predicted, targets, [1.0]
    ) == pytest.approx(0.98)
    assert consistent(torch.tensor([[1, 2, 3, 4, 6]]).to(dtype)).tolist() == [
        pytest.approx([1, 2, 3, 4, 6], rel=0.01)
    ]
