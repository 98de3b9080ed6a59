import gzip
import io
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from fedlearn.data import Column, DataOptions, load_dataset
from fedlearn.errors import ConfigError, DataError

GOOD = "age,sex,site,ill\n30,f,north,0\n60,m,south,2\n,f,north,1\n90,m,east,0\n"
OPTIONS = DataOptions(
    dataset="csv",
    label="ill",
    classes=(("0",), ("1", "2")),
    columns={"age": Column(0, 100, impute=50), "sex": Column(values=("f", "m"))},
    client_column="site",
)


def load_text(folder, text, **changes):
    path = folder / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_dataset(replace(OPTIONS, path=str(path), **changes))


def test_csv_gives_features_labels_and_sorted_clients(tmp_path):
    loaded = load_text(tmp_path, GOOD)
    train = loaded.train
    np.testing.assert_allclose(train.features, [[-0.4, 1, 0], [0.2, 0, 1], [0, 1, 0], [0.8, 0, 1]], atol=1e-7)
    assert train.labels.tolist() == [0, 1, 1, 0]
    assert train.task.classes == ("0", "1/2")
    assert train.client_names == ("east", "north", "south")
    assert train.clients.tolist() == [1, 2, 1, 0]
    assert loaded.test is None


def test_byte_order_mark_quotes_windows_lines_and_blank_end_are_read(tmp_path):
    text = b"\xef\xbb\xbf" + GOOD.replace("north", '"north, upper"').replace("\n", "\r\n").encode() + b"\r\n\r\n"
    train = load_text(tmp_path, text).train
    assert len(train) == 4
    assert "north, upper" in train.client_names


def test_header_alone_is_a_client_without_records(tmp_path):
    train = load_text(tmp_path, "age,sex,site,ill\n").train
    assert (len(train), train.features.shape, train.clients.shape) == (0, (0, 3), (0,))


def test_share_holds_out_the_same_rows_every_time(tmp_path):
    text = "age,sex,site,ill\n" + "".join(f"{age},f,north,0\n" for age in range(50))
    first, again = (load_text(tmp_path, text, public_test=0.2) for _ in range(2))
    assert len(first.train) + len(first.test) == 50
    assert 3 <= len(first.test) <= 20, "each row by its own hash: 10 are expected"
    np.testing.assert_array_equal(first.test.features, again.test.features)


def test_second_file_is_the_public_test_and_needs_no_client_column(tmp_path):
    (tmp_path / "public.csv").write_text("age,sex,ill\n50,f,1\n")
    loaded = load_text(tmp_path, GOOD, public_test=str(tmp_path / "public.csv"))
    assert (len(loaded.train), len(loaded.test)) == (4, 1)
    assert loaded.test.clients is None


def test_parquet_gives_what_csv_gives(tmp_path):
    table = pyarrow.table(
        {
            "age": [30.0, 60.0, None, 90.0],
            "sex": pyarrow.array(["f", "m", "f", "m"]).dictionary_encode(),
            "site": ["north", "south", "north", "east"],
            "ill": [0, 2, 1, 0],
        }
    )
    parquet.write_table(table, tmp_path / "table.parquet")
    ours = load_dataset(replace(OPTIONS, dataset="parquet", path=str(tmp_path / "table.parquet"))).train
    theirs = load_text(tmp_path, GOOD).train
    np.testing.assert_array_equal(ours.features, theirs.features)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_array_equal(ours.clients, theirs.clients)


BAD_FILES = {
    "no feature column": (
        "age,sex,site,ill,ages\n1,f,north,0,1\n",
        "has the column 'ages', which has no bounds.*would leak",
    ),
    "feature column missing": ("sex,site,ill\nf,north,0\n", "has no column 'age'"),
    "no label column": ("age,sex,site\n1,f,north\n", r"no column 'ill', which data\.label names"),
    "no client column": ("age,sex,ill\n1,f,0\n", r"no column 'site', which data\.client_column names"),
    "column twice": (GOOD.replace("site", "age"), "two columns 'age'"),
    "column without a name": (GOOD.replace("age", "", 1), "column without a name, number 1"),
    "quote in the header": (GOOD.replace("age", '"age', 1), "is not a csv file.*quotes that close"),
    "broken gzip": (gzip.compress(GOOD.encode())[:-9], "is not a gzip file that can be read"),
    "empty file": ("", "is empty"),
    "bytes of parquet": (b"PAR1\x00\x01\x02PAR1", r"has no column 'ill', .*; it has 'PAR1.x00"),
}


@pytest.mark.parametrize("case", list(BAD_FILES))
def test_bad_file_is_one_sentence_to_the_holder(tmp_path, case):
    text, expected = BAD_FILES[case]
    with pytest.raises(DataError, match=expected) as caught:
        load_text(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "table.csv") in str(caught.value)


UNUSABLE = {
    "text for a number": (GOOD.replace("60", "old"), 2, "column 'age' is 'old'; expected a finite number"),
    "category that is not listed": (GOOD.replace("60,m", "60,x"), 2, "column 'sex' is 'x'; expected one of"),
    "missing without impute": (GOOD.replace("60,m", "60,"), 2, "column 'sex' is missing"),
    "label of no class": (GOOD.replace("east,0", "east,7"), 4, "column 'ill' is '7'; expected a label"),
    "missing label": (GOOD.replace("east,0", "east,"), 4, "column 'ill' is missing"),
    "missing client": (GOOD.replace("east", ""), 4, "column 'site' is missing"),
    "too few fields": (GOOD.replace("60,m,", "60,"), 2, "has 3 fields; expected 4"),
    "too many fields": (GOOD.replace("60,m,", "60,m,m,"), 2, "has 5 fields; expected 4"),
    "quote that does not close": (GOOD.replace("60", '"60'), 2, "quotes that close on their line"),
    "a byte that is no text": (GOOD.encode().replace(b"60,m", b"60,\x81"), 2, "column 'sex' is"),
    "NUL": (GOOD.replace("60", "6\x000"), 2, "column 'age' is"),
}


@pytest.mark.parametrize("case", list(UNUSABLE))
def test_a_row_that_cannot_be_used_is_absent_and_named_and_the_others_stay(tmp_path, case):
    text, row, why = UNUSABLE[case]
    loaded, whole = load_text(tmp_path, text), load_text(tmp_path, GOOD)
    (place, told), *others = loaded.unusable.items()
    assert not others
    assert place == f"{tmp_path / 'table.csv'}, row {row}"
    assert why in told
    rest = np.delete(np.arange(4), row - 1)
    np.testing.assert_array_equal(loaded.train.features, whole.train.features[rest])
    np.testing.assert_array_equal(loaded.train.labels, whole.train.labels[rest])


@pytest.mark.parametrize(
    "written",
    [
        GOOD.replace(",", ";"),
        GOOD.replace(",", "\t"),
        GOOD.replace(",", ";").replace("30", "30,0"),
        "\ufeff" + GOOD,
        GOOD.encode("utf-16"),
        gzip.compress(GOOD.encode(), mtime=0),
        GOOD.replace("60", "\n60"),
    ],
)
def test_a_table_is_the_same_however_it_is_written(tmp_path, written):
    ours, plain = load_text(tmp_path, written), load_text(tmp_path, GOOD)
    np.testing.assert_array_equal(ours.train.features, plain.train.features)
    np.testing.assert_array_equal(ours.train.labels, plain.train.labels)
    assert not ours.unusable


def test_a_line_that_is_not_utf_8_is_windows_1252(tmp_path):
    train = load_text(tmp_path, GOOD.replace("north", "nörd").encode("cp1252")).train
    assert "nörd" in train.client_names


def test_columns_that_are_ignored_need_no_bounds(tmp_path):
    text = GOOD.replace("age,", "patient_id,note_1,age,").replace("\n", "\n1,x,").removesuffix("1,x,")
    train = load_text(tmp_path, text, ignore=("patient_id", "note_*")).train
    np.testing.assert_array_equal(train.features, load_text(tmp_path, GOOD).train.features)


cells = st.sampled_from(
    ["30", "f", "m", "0", "2", "", "x", "1e999", '"', 'a"b', '"a', "é", "\x00", "\r", "nan", "2000-01-01"]
)
lines = st.one_of(
    st.tuples(
        st.integers(-9, 200).map(str), st.sampled_from("fmx"), st.sampled_from(["north", "s"]), st.sampled_from("0127")
    )
    .map(",".join)
    .map(str.encode),
    st.lists(cells, max_size=6).map(",".join).map(str.encode),
    st.binary(max_size=20).filter(lambda raw: b"\n" not in raw),
)


def records_of(content, kind="csv", **changes):
    """Each record of a file as bytes, in order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{kind}"
        path.write_bytes(content)
        loaded = load_dataset(replace(OPTIONS, dataset=kind, path=str(path), client_column=None, **changes))
        parts = (loaded.train, loaded.test) if loaded.test is not None else (loaded.train,)
        return [
            [row.tobytes() + bytes([label]) for row, label in zip(p.features, p.labels, strict=True)] for p in parts
        ]


def is_one_more(more, fewer):
    """Whether `more` is `fewer` with at most one record put in somewhere."""
    return more == fewer or any(more[:at] + more[at + 1 :] == fewer for at in range(len(more)))


@pytest.mark.parametrize("share", [None, 0.5])
@given(rows=st.lists(lines, max_size=6), added=lines, place=st.integers(0, 6))
def test_a_line_more_in_a_csv_changes_no_other_lines_record(share, rows, added, place):
    def records(some):
        text = b"\n".join([b"age,sex,site,ill", *some]) + b"\n"
        return records_of(text, public_test=share, ignore=("site",))

    before, after = records(rows), records([*rows[:place], added, *rows[place:]])
    assert all(is_one_more(more, fewer) for more, fewer in zip(after, before, strict=True))
    assert sum(map(len, after)) - sum(map(len, before)) in (0, 1)


stored = st.tuples(
    st.one_of(st.none(), st.floats(width=32)),
    st.sampled_from([b"f", b"m", b"x", b"\xff"]),
    st.sampled_from([0, 2, 7]),
    st.integers(-(2**62), 2**62),
)


@given(rows=st.lists(stored, max_size=5), added=stored, place=st.integers(0, 5))
def test_a_row_more_in_a_parquet_file_changes_no_other_rows_record(rows, added, place):
    def records(some):
        columns = list(zip(*some, strict=True)) or [[]] * 4
        # Text that is none, and moments that Python cannot hold, in columns used and unused.
        sex = pyarrow.array(columns[1], pyarrow.binary())
        arrays = {
            "age": pyarrow.array(columns[0], pyarrow.float32()),
            "sex": pyarrow.Array.from_buffers(pyarrow.string(), len(sex), sex.buffers()),
            "ill": pyarrow.array(columns[2], pyarrow.int64()),
            "seen": pyarrow.array(columns[3], pyarrow.int64()).cast(pyarrow.timestamp("ms")),
        }
        sink = io.BytesIO()
        parquet.write_table(pyarrow.table(arrays), sink)
        return records_of(sink.getvalue(), "parquet", ignore=("seen",))[0]

    assert is_one_more(records([*rows[:place], added, *rows[place:]]), records(rows))


def test_parts_of_a_parquet_table_are_read_as_one(tmp_path):
    folder = tmp_path / "rows.parquet"
    folder.mkdir()
    for part, age in enumerate([0.1, 0.7]):
        table = pyarrow.table({"age": pyarrow.array([age], pyarrow.float32()), "sex": ["f"], "ill": [False]})
        parquet.write_table(table, folder / f"part-{part}.parquet")
    options = replace(OPTIONS, dataset="parquet", path=str(folder), client_column=None, classes=(("false",), ("true",)))
    train = load_dataset(options).train
    csv = load_text(tmp_path, "age,sex,ill\n0.1,f,FALSE\n0.7,f,FALSE\n", client_column=None, classes=options.classes)
    np.testing.assert_array_equal(train.features, csv.train.features)


def test_twenty_thousand_columns_take_no_ten_seconds(tmp_path):
    names = [f"p{number}" for number in range(20_000)]
    text = ",".join([*names, "ill"]) + "\n" + ",".join(["1"] * 20_001) + "\n"
    began = time.perf_counter()
    train = load_text(tmp_path, text, columns=dict.fromkeys(names, Column(0, 2)), client_column=None).train
    assert train.features.shape == (1, 20_000)
    assert time.perf_counter() - began < 4, "half a second on one core; nine when names were compared in pairs"


def test_the_rows_to_train_on_under_another_name_are_no_public_test(tmp_path):
    (tmp_path / "again.csv").write_text("".join([GOOD.splitlines(keepends=True)[i] for i in (0, 3, 1, 4, 2)]))
    with pytest.raises(ConfigError, match="and no others"):
        load_text(tmp_path, GOOD, public_test=str(tmp_path / "again.csv"))


BAD_OPTIONS = {
    "no path": ({"path": None}, r"data\.path is missing"),
    "no label": ({"label": None}, r"data\.label is missing"),
    "no classes": ({"classes": None}, r"data\.classes is missing; write the raw labels"),
    "one class": ({"classes": (("0",),)}, "at least two classes"),
    "empty class": ({"classes": (("0",), ())}, "at least two classes"),
    "label in two classes": ({"classes": (("0",), ("1", "0"))}, "each label in one class"),
    "no columns": ({"columns": {}}, r"data\.columns is empty.*would leak"),
    "column without bounds": ({"columns": {"age": Column()}}, r"data\.columns\.age has no low and high.*would leak"),
    "label is a feature": ({"label": "age"}, r"data\.label is 'age', which is also a feature"),
    "client is a feature": ({"client_column": "sex"}, r"data\.client_column is 'sex', which is also a feature"),
    "label is the client": ({"client_column": "ill"}, "both 'ill'"),
    "share of one": ({"public_test": 1.0}, r"data\.public_test is 1\.0"),
    "missing file": ({"path": "/nowhere/table.csv"}, "/nowhere/table.csv is not a file"),
    "missing test file": ({"public_test": "/nowhere/test.csv"}, "/nowhere/test.csv is not a file"),
    "folder for a file": ({"path": "/"}, "/ is not a file"),
}


@pytest.mark.parametrize("case", list(BAD_OPTIONS))
def test_bad_option_is_one_sentence(tmp_path, case):
    changes, expected = BAD_OPTIONS[case]
    path = tmp_path / "table.csv"
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_dataset(replace(OPTIONS, **{"path": str(path), **changes}))
    assert "\n" not in str(caught.value)


def test_broken_parquet_is_one_sentence(tmp_path):
    path = tmp_path / "table.parquet"
    path.write_bytes(b"PAR1 this is not parquet PAR1")
    with pytest.raises(DataError, match="is not a parquet file that can be read") as caught:
        load_dataset(replace(OPTIONS, dataset="parquet", path=str(path)))
    assert "\n" not in str(caught.value)


def test_without_pyarrow_the_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedlearn\[data\]'"):
        load_dataset(replace(OPTIONS, dataset="parquet", path=str(tmp_path / "table.parquet")))


def test_csv_needs_neither_pandas_nor_pyarrow(tmp_path, monkeypatch):
    for name in ("pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(load_text(tmp_path, GOOD).train) == 4
