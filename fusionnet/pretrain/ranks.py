"""The order of a corpus's strings by each of RDKit's descriptors, as targets.

Descriptors spread over powers of ten, with tails; ranks do not, and need no scaling that one odd
string could ruin. Each descriptor is given as its rank among the strings, ties at their mean rank,
standardised. They are computed of the repeat unit with its endpoints capped by hydrogen. Predicting
them costs one linear layer, and made good encoders in NeurIPS's Open Polymer challenge of 2025.

Axes: S strings, K descriptors, R of which are not constant.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from rdkit import Chem, rdBase
from scipy.stats import rankdata
from tqdm import tqdm

from embedcache.features.chemistry import capped, computed, descriptor_names
from fusionnet.pretrain.processes import in_processes

STRINGS_PER_ITEM = 64


def descriptors(texts: Sequence[str], processes: int) -> Float[np.ndarray, "S K"]:
    """Return RDKit's descriptors of repeat units, NaN where one cannot be computed."""
    items = [
        list(texts[first : first + STRINGS_PER_ITEM])
        for first in range(0, len(texts), STRINGS_PER_ITEM)
    ]
    parts = in_processes(_descriptors, items, min(processes, max(1, len(items))))
    shown: Iterable[Float[np.ndarray, "_S K"]] = tqdm(
        parts, total=len(items), desc="descriptors", unit=f"x {STRINGS_PER_ITEM}", disable=None
    )
    return np.concatenate([np.empty((0, len(descriptor_names()))), *shown])


def _descriptors(texts: list[str]) -> Float[np.ndarray, "S K"]:
    with rdBase.BlockLogs():
        units = [capped(Chem.RWMol(Chem.MolFromSmiles(text))) for text in texts]
        found = np.stack([computed("rdkit", unit) for unit in units])
    found[~np.isfinite(found)] = np.nan
    return found


def standardised_ranks(values: Float[np.ndarray, "S K"]) -> Float[np.ndarray, "S R"]:
    """Return each descriptor's ranks, of mean 0 and standard deviation 1; NaN stays NaN.

    Descriptors that are the same for all strings are left out.
    """
    ranks = rankdata(values, axis=0, nan_policy="omit")
    present = np.isfinite(values)
    count = present.sum(0)
    mean = np.where(present, ranks, 0).sum(0) / count.clip(1)
    spread = np.sqrt(np.where(present, (ranks - mean) ** 2, 0).sum(0) / count.clip(1))
    varies = spread > 0
    return ((ranks - mean)[:, varies] / spread[varies]).astype(np.float32)
