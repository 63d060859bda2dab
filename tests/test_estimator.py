"""The estimator, by scikit-learn's own checks, and in what scikit-learn's users build of estimators; on real data."""

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from conftest import REPOSITORY
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.ensemble import VotingClassifier
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from distmlp import Config, InputError, MLPClassifier, load, train

# Settings of where the data come from, which are X and y here.
OF_FILES = {
    "dataset", "test_fraction", "label_column", "ignore_columns", "header", "text_columns", "missing", "image_size",
    "image_mode", "num_classes", "synthetic_examples", "synthetic_features", "synthetic_classes", "weight_column",
}  # fmt: skip
LIKE_SCIKIT_LEARN = {"random_state", "verbose", "warm_start", "workdir", "platform", "num_devices", "num_shards",
                     "reduction", "patience"}  # fmt: skip


def expected_failures(estimator: Any) -> dict[str, str]:
    return {"check_sample_weight_equivalence_on_dense_data": "compares at 1e-7, which float32 cannot meet"}


@parametrize_with_checks([MLPClassifier(num_devices=1)], expected_failed_checks=expected_failures)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_the_parameters_are_the_settings() -> None:
    fields = Config.__dataclass_fields__
    settings = {name for name, field in fields.items() if field.metadata["scope"] in ("experiment", "length")}
    parameters = inspect.signature(MLPClassifier).parameters
    assert set(parameters) == settings - OF_FILES - {"seed"} | LIKE_SCIKIT_LEARN
