import datetime
from decimal import Decimal

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.data import Column
from fedlearn.data.preprocessing import preprocess_frame
from fedlearn.errors import ConfigError, DataError

AGE = {"age": Column(0, 100)}
COLUMNS = {
    "age": Column(0, 100, impute=50),
    "sex": Column(values=("f", "m"), impute="f", missing=("?",)),
    "chol": Column(100, 600, impute=200, missing=("0", "n/a")),
}


def test_bounds_become_minus_one_and_one():
    features = preprocess_frame({"age": ["0", "50", "100"]}, AGE)
    assert features.dtype == np.float32
    assert features.tolist() == [[-1], [0], [1]]


def test_value_outside_the_bounds_is_clipped():
    assert preprocess_frame({"age": ["-7", "1e300"]}, AGE).tolist() == [[-1], [1]]


def test_category_is_one_feature_for_each_value_in_their_order():
    features = preprocess_frame({"sex": ["m", " f "]}, {"sex": Column(values=("f", "m"))})
    assert features.tolist() == [[0, 1], [1, 0]]


def test_columns_come_in_sorted_order_whatever_the_order_of_the_mapping():
    frame = {"b": ["10"], "a": ["0"]}
    bounds = Column(0, 10)
    for columns in ({"a": bounds, "b": bounds}, {"b": bounds, "a": bounds}):
        assert preprocess_frame(frame, columns).tolist() == [[-1, 1]]


@pytest.mark.parametrize("value", ["", "  ", None, float("nan"), "nan", pandas.NA, "0", "0.0", 0, "n/a"])
def test_missing_number_becomes_the_constant(value):
    assert preprocess_frame({"chol": [value]}, {"chol": COLUMNS["chol"]})[0, 0] == np.float32(-0.6)


@pytest.mark.parametrize("value", ["", None, "?", float("nan")])
def test_missing_category_becomes_the_constant(value):
    assert preprocess_frame({"sex": [value]}, {"sex": COLUMNS["sex"]}).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("raw", "number"),
    [("TRUE", 1), (False, 0), ("1970-01-03", 2), (datetime.date(1969, 12, 31), -1), ("1970-01-01 12:00", 0.5)],
)
def test_truth_values_and_dates_are_numbers(raw, number):
    column = {"x": Column(-10, 10)}
    assert preprocess_frame({"x": [raw]}, column).tolist() == preprocess_frame({"x": [number]}, column).tolist()


def test_two_values_that_mean_one_number_are_told_apart_by_their_text_alone():
    codes = {"code": Column(values=("250.0", "250.00"))}
    assert preprocess_frame({"code": ["250.00", "250.0"]}, codes).tolist() == [[0, 1], [1, 0]]
    with pytest.raises(DataError, match="'250'"):
        preprocess_frame({"code": ["250"]}, codes)


@pytest.mark.parametrize("raw", ["TRUE", "true", True])
def test_truth_is_the_same_category_in_any_spelling(raw):
    assert preprocess_frame({"k": [raw]}, {"k": Column(values=("False", "True"))}).tolist() == [[0, 1]]


@pytest.mark.parametrize("raw", ["1", "1.0", Decimal("1.00"), 1, 1.0, np.float32(1), np.int64(1), " 1 "])
def test_whole_number_is_the_same_category_in_any_type(raw):
    assert preprocess_frame({"k": [raw]}, {"k": Column(values=("0", "1"))}).tolist() == [[0, 1]]


def test_data_frame_and_lists_give_the_same_and_stay_unchanged():
    lists = {"age": [3, None, 44.5], "sex": ["m", None, "?"], "chol": [0, 250, 601.5]}
    frame = pandas.DataFrame(lists)
    before = frame.copy()
    np.testing.assert_array_equal(preprocess_frame(frame, COLUMNS), preprocess_frame(lists, COLUMNS))
    pandas.testing.assert_frame_equal(frame, before)


rows = st.tuples(
    st.one_of(st.none(), st.floats(-1e308, 1e308), st.integers(-(10**6), 10**6).map(str)),
    st.sampled_from(["f", "m", "?", ""]),
    st.one_of(st.floats(0, 700), st.sampled_from(["0", "n/a", "250"])),
)


def frame_of(records):
    return {name: [record[index] for record in records] for index, name in enumerate(("age", "sex", "chol"))}


@given(record=rows, others=st.lists(rows, max_size=5), place=st.integers(0, 5))
def test_features_of_a_row_depend_on_that_row_alone(record, others, place):
    place = min(place, len(others))
    together = preprocess_frame(frame_of([*others[:place], record, *others[place:]]), COLUMNS)
    alone = preprocess_frame(frame_of([record]), COLUMNS)
    np.testing.assert_array_equal(together[place], alone[0])
    assert np.abs(together).max() <= 1


def test_constant_column_and_no_rows_are_valid():
    assert preprocess_frame({"age": ["7", "7"]}, AGE).shape == (2, 1)
    assert preprocess_frame({"age": [], "sex": [], "chol": []}, COLUMNS).shape == (0, 4)


def test_huge_bounds_do_not_overflow():
    columns = {"x": Column(-1.7e308, 1.7e308)}
    assert preprocess_frame({"x": ["-1.7e308", "0", "1.7e308"]}, columns).tolist() == [[-1], [0], [1]]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (Column(), "has no low and high.*bounds measured on private records would leak them"),
        (Column(low=0), "has no high"),
        (Column(high=1), "has no low"),
        (Column(1, 1), "low below high"),
        (Column(2, 1), "low below high"),
        (Column(0, 5e-324), "further apart"),
        (Column(0, float("inf")), "finite"),
        (Column(float("nan"), 1), "finite"),
        (Column(0, 1, values=("a",)), "both bounds and values"),
        (Column(values=()), "at least one value"),
        (Column(values=("a", "a")), "each one once"),
        (Column(values=("a",), impute="b"), "impute is 'b'; expected one of"),
        (Column(0, 1, impute=2), "impute is 2; expected a number within"),
        (Column(0, 1, impute="x"), "impute is 'x'; expected a number within"),
        (Column(0, 1, impute=float("nan")), "impute is nan"),
    ],
)
def test_column_without_usable_public_bounds_is_one_sentence(column, expected):
    with pytest.raises(ConfigError, match=r"^data\.columns\.x.*" + expected) as caught:
        preprocess_frame({"x": []}, {"x": column})
    assert "\n" not in str(caught.value)


def test_no_columns_at_all_says_why_bounds_are_needed():
    with pytest.raises(ConfigError, match=r"data\.columns is empty.*would leak"):
        preprocess_frame({"x": ["1"]}, {})


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ({"age": ["1", "old"]}, "row 2, column 'age' is 'old'; expected a finite number"),
        ({"age": ["1_0"]}, "row 1, column 'age' is '1_0'"),
        ({"age": ["inf"]}, "column 'age' is 'inf'"),
        ({"age": ["1e999"]}, "column 'age' is '1e999'"),
        ({"age": [float("inf")]}, "column 'age' is 'inf'"),
        ({"age": ["1", ""]}, "row 2, column 'age' is missing"),
        ({"age": ["x" * 1000]}, "column 'age' is 'x{40}…'"),
        ({"years": []}, "no column 'age'"),
    ],
)
def test_unusable_number_names_row_and_column(frame, expected):
    with pytest.raises(DataError, match=expected):
        preprocess_frame(frame, AGE)


def test_unlisted_category_names_row_and_column():
    with pytest.raises(DataError, match="row 3, column 'sex' is 'x'; expected one of 'f', 'm'"):
        preprocess_frame({"sex": ["f", "m", "x"]}, {"sex": Column(values=("f", "m"))})


def test_columns_of_two_lengths_are_refused():
    with pytest.raises(DataError, match="'b' has 1 rows; expected 2"):
        preprocess_frame({"a": ["1", "2"], "b": ["1"]}, {"a": Column(0, 1), "b": Column(0, 1)})
