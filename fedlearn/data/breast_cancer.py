"""breast-cancer: 569 fine needle aspirates of the breast, 30 numbers each (UCI Breast Cancer Wisconsin, diagnostic).

The bounds are the least and the largest values in the summary that the data set's public description prints
(scikit-learn's `load_breast_cancer().DESCR`, "Summary Statistics"), written down here and never computed from records.
Few of its figures are rounded inward; what lies outside by that is clipped.
"""

import numpy as np

from fedlearn.data.dataset import Column, DataOptions, Dataset, Loaded, hold_out, refuse_unused
from fedlearn.data.preprocessing import preprocess_frame
from fedlearn.task.classification import Classification

__all__ = ["COLUMNS", "TEST_SHARE", "load_breast_cancer"]

TEST_SHARE = 0.2  # ceil: 114 of 569 records

COLUMNS = {
    "mean radius": Column(6.981, 28.11),
    "mean texture": Column(9.71, 39.28),
    "mean perimeter": Column(43.79, 188.5),
    "mean area": Column(143.5, 2501.0),
    "mean smoothness": Column(0.053, 0.163),
    "mean compactness": Column(0.019, 0.345),
    "mean concavity": Column(0.0, 0.427),
    "mean concave points": Column(0.0, 0.201),
    "mean symmetry": Column(0.106, 0.304),
    "mean fractal dimension": Column(0.05, 0.097),
    "radius error": Column(0.112, 2.873),
    "texture error": Column(0.36, 4.885),
    "perimeter error": Column(0.757, 21.98),
    "area error": Column(6.802, 542.2),
    "smoothness error": Column(0.002, 0.031),
    "compactness error": Column(0.002, 0.135),
    "concavity error": Column(0.0, 0.396),
    "concave points error": Column(0.0, 0.053),
    "symmetry error": Column(0.008, 0.079),
    "fractal dimension error": Column(0.001, 0.03),
    "worst radius": Column(7.93, 36.04),
    "worst texture": Column(12.02, 49.54),
    "worst perimeter": Column(50.41, 251.2),
    "worst area": Column(185.2, 4254.0),
    "worst smoothness": Column(0.071, 0.223),
    "worst compactness": Column(0.027, 1.058),
    "worst concavity": Column(0.0, 1.252),
    "worst concave points": Column(0.0, 0.291),
    "worst symmetry": Column(0.156, 0.664),
    "worst fractal dimension": Column(0.055, 0.208),
}


def load_breast_cancer(options: DataOptions) -> Loaded:
    """455 records to train on and 114 to test with, fixed whatever the seed; features (n, 30), malignant and benign.

    `options.public_test` holds out another share than the 20 % of the default; 0 holds out nothing.
    """
    from sklearn import datasets

    refuse_unused(options)
    raw = datasets.load_breast_cancer()
    frame = {str(name): values.tolist() for name, values in zip(raw.feature_names, raw.data.T, strict=True)}
    features = preprocess_frame(frame, COLUMNS, place="breast-cancer")
    records = Dataset(features, raw.target.astype(np.int64), Classification(("malignant", "benign")))
    return hold_out(records, TEST_SHARE if options.public_test is None else float(options.public_test))
