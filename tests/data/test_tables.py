import sys
from dataclasses import replace

import numpy as np
import pyarrow
import pytest
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
    assert train.classes == ("0", "1/2")
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
    assert (len(first.train), len(first.test)) == (40, 10)
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
    "text for a number": (GOOD.replace("60", "old"), "column 'age', row 2 is 'old'; expected a finite number"),
    "category that is not listed": (GOOD.replace("60,m", "60,x"), "column 'sex', row 2 is 'x'; expected one of"),
    "missing without impute": (GOOD.replace("60,m", "60,"), "column 'sex', row 2 is missing"),
    "label of no class": (GOOD.replace("east,0", "east,7"), "column 'ill', row 4 is '7'; expected a label"),
    "missing label": (GOOD.replace("east,0", "east,"), "column 'ill', row 4 is missing"),
    "missing client": (GOOD.replace("east", ""), "column 'site', row 4 is missing"),
    "no feature column": (GOOD.replace("age", "ages"), "has the column 'ages', which has no bounds.*would leak"),
    "feature column missing": ("sex,site,ill\nf,north,0\n", "has no column 'age'"),
    "no label column": ("age,sex,site\n1,f,north\n", r"no column 'ill', which data\.label names"),
    "no client column": ("age,sex,ill\n1,f,0\n", r"no column 'site', which data\.client_column names"),
    "column twice": (GOOD.replace("site", "age"), "two columns 'age'"),
    "column without a name": (GOOD.replace("age", "", 1), "column without a name, number 1"),
    "too few fields": (GOOD.replace("60,m,", "60,"), "row 2 has 3 fields; expected 4"),
    "too many fields": (GOOD.replace("60,m,", "60,m,m,"), "row 2 has 5 fields; expected 4"),
    "blank line inside": (GOOD.replace("60", "\n60"), "row 2 has 0 fields"),
    "semicolons": (GOOD.replace(",", ";"), "separated by semicolons or tabs"),
    "quote that does not close": (GOOD.replace("60", '"60'), "is not a csv file.*quotes that close"),
    "empty file": ("", "is empty"),
    "no text": (b"\xff\xfe\x00age", "is not UTF-8"),
    "bytes of parquet": (b"PAR1\x00\x01\x02PAR1", "has the column"),
}


@pytest.mark.parametrize("case", list(BAD_FILES))
def test_bad_file_is_one_sentence_to_the_holder(tmp_path, case):
    text, expected = BAD_FILES[case]
    with pytest.raises(DataError, match=expected) as caught:
        load_text(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "table.csv") in str(caught.value)


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
