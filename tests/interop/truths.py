"""tests/interop/truths.py: the truths beside a fixture: golden.json and the raw files that it describes."""
import json
import os

import numpy as np


def load(directory):
    with open(os.path.join(directory, "golden.json"), encoding="utf-8") as file:
        return json.load(file)


def raw(directory, record):
    kinds = {"f32": "<f4", "f64": "<f8", "i32": "<i4", "i64": "<i8"}
    return np.fromfile(os.path.join(directory, record["file"]), kinds[record["dtype"]]).reshape(record["shape"])
