"""Images and captions that occur more than once."""

import numpy as np

from ucore.errors import DataError
from ucore.files import file_hash
from ucore.images import map_files
from ucore.manifest import Manifest


def normal_caption(text: str) -> str:
    """`text` without what does not change its words: case, spacing, and signs at its end."""
    return " ".join(text.lower().split()).rstrip(".,;:!? ")


def identical_groups(manifest: Manifest) -> np.ndarray:
    """Names str (n,) of groups of rows that share an image file's bytes, or the whole list of captions.

    A group is named after its smallest sample_id, whatever the order of the rows. Single shared captions do not
    join images: annotators repeat the same short sentence for much of a dataset.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(manifest)
    try:
        hashes = map_files(file_hash, manifest.image_paths, "Hashing images")
    except OSError as error:
        raise DataError(f"Cannot read {error.filename} ({error.strerror}). Read the dataset again.") from error
    pairs = list(enumerate(hashes))
    for row, captions in enumerate(manifest.frame["captions"]):
        if len(captions):
            pairs.append((row, "\n".join(normal_caption(text) for text in captions)))
    keys: dict[str, int] = {}
    rows = np.array([row for row, _ in pairs], int)
    columns = np.array([n + keys.setdefault(key, len(keys)) for _, key in pairs], int)
    size = n + len(keys)
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(size, size))
    label = connected_components(graph, directed=False)[1][:n]
    names: dict[int, str] = {}
    for group, name in zip(label, manifest.frame["sample_id"], strict=True):
        names[group] = min(names.get(group, name), name)
    return np.array([names[group] for group in label], dtype=str)
