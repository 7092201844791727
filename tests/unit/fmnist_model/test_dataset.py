"""An unusable dataset is refused by name, and every run holds out the same validation images."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from numpy.typing import NDArray

from fmnist_model.dataset import LabelledImages, check_classes, from_table, hold_out, validate
from fmnist_model.errors import InvalidDataset
from tests.unit.tasks.classification.image_inputs import png


def labelled(labels: Any) -> LabelledImages:
    """Return images whose first two pixels encode their number."""
    labels = np.asarray(labels)
    images = np.zeros((len(labels), 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(len(labels)), 256)
    return LabelledImages(images, labels)


def numbers(data: LabelledImages) -> list[int]:
    """Return the numbers that `labelled` encoded."""
    found: list[int] = (data.images[:, 0, 0].astype(int) * 256 + data.images[:, 0, 1]).tolist()
    return found


def counts(data: LabelledImages) -> list[int]:
    found: list[int] = np.bincount(data.labels, minlength=10).tolist()
    return found


def table(labels: Any, kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"image": [png(number) for number in range(len(labels))], "label": pa.array(labels, kind)})


# Validation


def test_whole_labels_of_any_numeric_type_become_int64():
    data = validate(labelled(np.array([0.0, 9.0], np.float32)), "train")
    assert (data.labels.dtype, data.labels.tolist()) == (np.int64, [0, 9])


@pytest.mark.parametrize(
    ("labels", "value", "row"),
    [
        ([3, 10, 11], "10", 1),
        ([3, 4, -1], "-1", 2),
        ([np.nan, 4.0], "nan", 0),
        ([4.0, np.inf], "inf", 1),
        ([4.0, 2.5], r"2\.5", 1),
        (np.array([1, 300], np.uint64), "300", 1),
    ],
)
def test_error_gives_the_label_that_is_no_class_and_its_row(labels: Any, value: str, row: int):
    with pytest.raises(InvalidDataset, match=rf"train.*row {row} .*{value}"):
        validate(labelled(labels), "train")


@pytest.mark.parametrize(("labels", "found"), [(["Bag", "Coat"], r"<U4.*\[2\]"), ([[1], [2]], r"int64.*\[2, 1\]")])
def test_labels_of_another_shape_or_type_are_refused(labels: Any, found: str):
    with pytest.raises(InvalidDataset, match=rf"train .*{found}"):
        validate(labelled(labels), "train")


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 28, 27), np.uint8), np.zeros((3, 28, 28), np.uint8), np.full((2, 28, 28), np.nan, np.float32)],
)
def test_images_of_another_shape_or_type_are_refused(images: NDArray[Any]):
    with pytest.raises(InvalidDataset, match=r"train .*uint8.*\[2, 28, 28\]"):
        validate(LabelledImages(images, np.array([1, 2])), "train")


def test_empty_split_is_refused():
    with pytest.raises(InvalidDataset, match="train "):
        validate(labelled(np.empty(0, np.int64)), "train")


@pytest.mark.parametrize("tables", [[], [table([], pa.int64())]], ids=["no table", "no row"])
def test_split_without_rows_is_refused(tables: list[pa.Table]):
    with pytest.raises(InvalidDataset, match="train "):
        from_table(tables, "train")


def test_error_gives_the_row_of_a_null_label_in_the_split():
    with pytest.raises(InvalidDataset, match=r"train .*null.*row 4\b"):
        from_table([table([1, 2, 3]), table([4, None])], "train")


def test_error_gives_the_row_of_a_nan_label_in_the_split():
    with pytest.raises(InvalidDataset, match=r"train.*row 3 .*nan"):
        from_table([table([1.0, 2.0, 3.0]), table([float("nan")])], "train")


def test_error_gives_the_row_of_a_broken_image_in_the_split():
    broken = pa.table({"image": [png(0), b"no picture"], "label": [1, 2]})
    with pytest.raises(InvalidDataset, match=r"train .*row 3\b.*not an image"):
        from_table([table([1, 2]), broken], "train")


def test_label_column_of_another_type_is_refused():
    with pytest.raises(InvalidDataset, match=r"train .*string"):
        from_table([table(["Bag"])], "train")


def test_error_names_the_missing_column():
    with pytest.raises(InvalidDataset, match=r"train .*'label'.*image"):
        from_table([table([1]).drop_columns(["label"])], "train")


def test_error_names_the_classes_without_images():
    with pytest.raises(InvalidDataset, match=r"train .*3 \(Dress\), 8 \(Bag\)"):
        check_classes(labelled([0, 1, 2, 4, 5, 6, 7, 9]), "train")


def test_every_class_once_is_enough():
    check_classes(labelled(range(10)), "train")


# Validation images


def test_every_image_is_in_one_part_and_in_order():
    data = labelled(np.random.default_rng(0).integers(0, 10, 3_000))
    training, validation = hold_out(data, 700)
    assert (len(training), len(validation)) == (2_300, 700)
    assert sorted(numbers(training) + numbers(validation)) == list(range(3_000))
    assert (numbers(training), numbers(validation)) == (sorted(numbers(training)), sorted(numbers(validation)))
    np.testing.assert_array_equal(validation.labels, data.labels[numbers(validation)])


def test_holding_out_no_images_keeps_all():
    data = labelled(np.arange(50) % 10)
    training, validation = hold_out(data, 0)
    assert (numbers(training), len(validation), validation.images.shape) == (list(range(50)), 0, (0, 28, 28))


def test_quotas_are_rounded_by_the_largest_remainders():
    # The exact quotas of 7 out of 30 images are 2.33, 4.2 and 0.47.
    data = labelled([0] * 10 + [1] * 18 + [2] * 2)
    assert counts(hold_out(data, 7)[1])[:3] == [2, 4, 1]


@given(
    labels=st.lists(st.sampled_from([0, 3, 3, 3, 9]), min_size=1, max_size=300),
    share=st.floats(0, 0.9),
)
def test_each_class_is_held_out_in_proportion(labels: list[int], share: float):
    data = labelled(labels)
    images = int(len(labels) * share)
    exact = np.array(counts(data)) * images / len(labels)
    try:
        training, validation = hold_out(data, images)
    except InvalidDataset:
        assert any(np.ceil(part) == count for part, count in zip(exact, counts(data), strict=True) if count)
        return
    assert len(validation) == images
    assert np.abs(counts(validation) - exact).max() < 1
    assert [count > 0 for count in counts(training)] == [count > 0 for count in counts(data)]


def test_global_seed_does_not_change_the_held_out_images():
    np.random.seed(1)
    first = numbers(hold_out(labelled(np.arange(1_000) % 10), 50)[1])
    np.random.seed(2)
    assert numbers(hold_out(labelled(np.arange(1_000) % 10), 50)[1]) == first


def test_held_out_images_never_change():
    assert numbers(hold_out(labelled(np.arange(100) % 10), 10)[1]) == [2, 7, 26, 30, 54, 55, 71, 78, 93, 99]


def test_held_out_images_are_spread_over_the_dataset():
    chosen = np.array(numbers(hold_out(labelled(np.arange(1_000) % 10), 500)[1]))
    assert 200 < (chosen < 500).sum() < 300
    assert 200 < (chosen // 10 % 2).sum() < 300


@pytest.mark.parametrize("images", [19, 20, 21])
def test_holding_out_all_images_of_a_class_is_refused(images: int):
    data = labelled([0] * 10 + [8] * 10)
    with pytest.raises(InvalidDataset, match=rf"{images} of 20 .*(T-shirt/top|Bag)"):
        hold_out(data, images)


def test_rare_class_keeps_its_only_training_image():
    data = labelled([0] * 100 + [8])
    assert counts(hold_out(data, 50)[0])[8] == 1
    with pytest.raises(InvalidDataset, match=r"60 of 101 .*Bag"):
        hold_out(data, 60)


def test_holding_out_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="-1"):
        hold_out(labelled([0, 1]), -1)
