"""Columns of vectors as matrices and back, without a Python object per number."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rass_core.lake.declaration import VECTOR


def vector_column(vectors: npt.NDArray[np.float32]) -> pa.Array:
    """Return the rows of a matrix, (n, d), as a column of vectors of type `VECTOR`."""
    n_rows, width = vectors.shape
    offsets = pa.array(np.arange(n_rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)), type=VECTOR)


def matrix(column: pa.Array) -> npt.NDArray[Any]:
    """Return a column of vectors of one width as a matrix, (n, d); of no rows, (0, 0)."""
    return np.asarray(column.flatten()).reshape(len(column), -1 if len(column) else 0)
