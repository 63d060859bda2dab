"""Input scaling: statistics of the training set, computed once and carried in every checkpoint."""

import jax
import numpy as np

from distmlp.config import Config
from distmlp.data.datasets import Data
from distmlp.data.examples import blocks


def input_scaling(config: Config, data: Data) -> tuple[np.ndarray, ...]:
    """() or (shift, scale), float32 [features]: the network's input is (x - shift) * scale.

    unit divides by the training set's largest absolute value; standard gives each feature mean 0 and standard
    deviation 1 over the training set, and leaves constant features at 0.
    """
    width = data.num_features
    if config.input_scaling == "none":
        return ()
    if config.input_scaling == "unit":
        largest = max(max(float(block.max()), -float(block.min())) for block in blocks(data.train))
        return np.zeros(width, np.float32), np.full(width, 1 / (largest or 1), np.float32)
    count = len(data.train)
    mean = sum((block.sum(axis=0, dtype=np.float64) for block in blocks(data.train)), np.zeros(width)) / count
    squares = sum((((block - mean) ** 2).sum(axis=0) for block in blocks(data.train)), np.zeros(width))
    deviation = np.sqrt(squares / count)
    scale = np.divide(1, deviation, out=np.zeros(width), where=deviation > 0)
    return mean.astype(np.float32), scale.astype(np.float32)


def scaling_shapes(config: Config, data: Data) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shapes and dtypes of what `input_scaling` returns."""
    return () if config.input_scaling == "none" else (jax.ShapeDtypeStruct((data.num_features,), np.float32),) * 2
