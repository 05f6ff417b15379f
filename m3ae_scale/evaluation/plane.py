"""Features laid out in the plane: t-SNE by scikit-learn, and UMAP where it is installed."""

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from m3ae_scale.errors import InputError

Places = NDArray[np.float64]  # (n, 2)


def layouts(features: Tensor, seed: int = 0, perplexity: float = 30.0) -> dict[str, Places]:
    """Lay `features` (n, dim) out, by each method that is here: its name -> (n, 2).

    Raises InputError for too few samples.
    """
    x = features.numpy().astype(np.float64)
    if len(x) < 5:
        raise InputError(f"embed: found {len(x)} samples, expected 5 or more to lay out")
    if x.shape[1] > 50:  # as t-SNE's authors do: less noise, less time
        x = PCA(min(50, *x.shape), random_state=seed).fit_transform(x)
    tsne = TSNE(perplexity=min(perplexity, (len(x) - 1) / 3), init="pca", random_state=seed)
    found = {"t-SNE": tsne.fit_transform(x).astype(np.float64)}
    if find_spec("umap") is not None:
        from umap import UMAP  # type: ignore[import-not-found]

        found["UMAP"] = UMAP(random_state=seed).fit_transform(x).astype(np.float64)
    return found


def separation(places: Places, labels: Tensor, k: int = 10) -> float:
    """Return the share of each sample's `k` nearest in the plane that have its class."""
    k = min(k, len(places) - 1)
    nearest = NearestNeighbors(n_neighbors=k + 1).fit(places).kneighbors(return_distance=False)[:, 1:]
    told = labels.numpy()
    return float((told[nearest] == told[:, None]).mean())
