"""The estimator among scikit-learn's tools: words and gaps of a table are encoded in a pipeline, and a search chooses.

    pip install pandas && python examples/sklearn_pipeline.py
"""

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_wine
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from distmlp import MLPClassifier

wines = load_wine(as_frame=True)
table = wines.data.mask(np.random.default_rng(0).random(wines.data.shape) < 0.05)  # absent values
table["hue"] = pd.qcut(wines.data["hue"], 3, labels=["blue", "purple", "red"]).astype(str)  # words

encode = make_column_transformer((OneHotEncoder(), ["hue"]), remainder=SimpleImputer())
network = MLPClassifier(hidden_sizes=(32,), num_epochs=20, random_state=0)
search = GridSearchCV(make_pipeline(encode, network), {"mlpclassifier__weight_decay": [0.1, 10.0]}, cv=3)
search.fit(table, wines.target)

scores = [search.cv_results_[f"split{fold}_test_score"][search.best_index_] for fold in range(3)]
error = np.std(scores, ddof=1) / np.sqrt(3)
print(f"best weight decay {search.best_params_['mlpclassifier__weight_decay']:g}: accuracy {search.best_score_:.1%} "
      f"± {error:.1%} in three folds")  # fmt: skip
