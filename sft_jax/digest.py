"""A checksum of arrays and what is said of them, which tells whether a file still holds what was written."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def digest(arrays: Mapping[str, np.ndarray], contents: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the arrays, and over the JSON beside them."""
    total = hashlib.sha256(json.dumps(contents, sort_keys=True).encode())
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        total.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
