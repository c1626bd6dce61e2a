"""The table that `loading` reads: random numbers in the columns of configs/stage1.yaml, written by
the cache writer itself.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.harness.stamp import REPOSITORY
from embedcache.build.files import NO_ROWS
from embedcache.cache import manifest
from embedcache.cache.identity import FORMAT_VERSION
from embedcache.cache.layout import Layout, RowBlock, StringSpec, StringTable
from embedcache.cache.writer import StoreWriter
from embedcache.config.cache import CacheConfig
from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.tokens import TokenTable
from embedcache.scaling import Scaling, VectorScaling
from embedcache.table.strings import text_hashes
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.rows.tensors import row_bytes

NUM_STRINGS, WIDTH = 21, 600
ROWS_PER_PATIENT, NUM_PATIENTS = 7458, 60
STRINGS = [f"[*]{'C' * (number + 1)}[*]" for number in range(NUM_STRINGS)]


def stage1(folder: Path, *overrides: str) -> Experiment:
    """Return the experiment whose columns the table has, without encoder."""
    fixed = (
        f"cache.path={folder / 'cache.zarr'}",
        "encoder.mode=frozen",
        "encoder.source=none",
        "train.precision=fp32",
    )
    return load_experiment(REPOSITORY / "configs" / "stage1.yaml", [*fixed, *overrides])


def write_table(path: Path, num_rows: int, memory_mib: int) -> None:
    """Write a cache of random rows; a chunk is small enough for 16 of them to a buffer."""
    layout = _layout(stage1(path.parent), num_rows)
    rows_per_chunk = min(65_536, (memory_mib << 20) // (36 * row_bytes(layout)))
    writer = StoreWriter(path, layout, CacheConfig(path=str(path), rows_per_chunk=rows_per_chunk))
    generator = np.random.default_rng(0)
    tokens = TokenTable(
        torch.ones(3 * NUM_STRINGS, dtype=torch.int64), torch.arange(0, 3 * NUM_STRINGS + 1, 3)
    )
    embeddings = torch.from_numpy(generator.normal(size=(NUM_STRINGS, WIDTH)).astype(np.float32))
    no_features = torch.zeros(NUM_STRINGS, 0)
    strings = StringTable(STRINGS, tokens, embeddings, torch.ones(NUM_STRINGS).long(), no_features)
    writer.add_strings(layout.strings[0], strings)
    tally = NO_ROWS.grown((), 0, {"polymer": NUM_STRINGS}, layout.targets, 0)
    for start in tqdm(range(0, num_rows, writer.rows_per_block), desc="write rows", disable=None):
        size = min(writer.rows_per_block, num_rows - start)
        block = random_rows(layout, start, size, generator)
        writer.add_rows(block)
        nowhere = np.zeros(size, dtype=np.int64)
        strings_of = {"polymer": block.string_id[:, 0]}
        tally.add(block.split, block.fold, nowhere, nowhere, strings_of, block.targets)
    writer.finish(_unscaled(layout))
    attributes = {
        "format_version": FORMAT_VERSION,
        "identity": {"table": "made at random"},
        "layout": layout.model_dump(mode="json"),
        "provenance": {
            "config": {"data": {"path": []}},
            "versions": {},
            "built": "",
            "rows_of_files": [num_rows],
        },
        "report": {
            "num_encoded": 0,
            "encoding": {"seconds": 0.0, "ranks": 1},
            "num_excluded": 0,
            "num_blank": 0,
            "num_invalid": 0,
            "invalid": [],
            "remarks": [],
            "unknown": {},
            "merged": {},
            "split": tally.counts().model_dump(mode="json"),
            "seconds": [],
        },
    }
    manifest.seal(path, attributes)


def _layout(experiment: Experiment, num_rows: int) -> Layout:
    """Return the layout of a table with Stage 1's columns and one column of strings."""
    spec = StringSpec(
        name="polymer",
        column="polymer_SMILES",
        kind="psmiles",
        num_strings=NUM_STRINGS,
        width=WIDTH,
        num_tokens=3 * NUM_STRINGS,
        pooling="cls",
        encoder=EncoderConfig(),
        encoding="random",
        standin=True,
    )
    return Layout(
        num_rows=num_rows,
        strings=(spec,),
        numeric=experiment.data.features,
        categories=(("polymer_category", tuple("abcdefgh")),),
        targets=experiment.targets,
        absent_targets=(),
        groups=(),
        strata=(),
        facets=(),
    )


def _unscaled(layout: Layout) -> Scaling:
    """Return the scaling that changes nothing."""
    num_numeric, num_targets = len(layout.numeric), len(layout.targets)
    binary = [target.name for target in layout.targets if target.kind == "binary"]
    unit = VectorScaling(mean=(0.0,) * WIDTH, std=(1.0,) * WIDTH)
    return Scaling(
        columns=tuple(column.column for column in layout.numeric),
        transforms=tuple(column.transform for column in layout.numeric),
        mean=(0.0,) * num_numeric,
        std=(1.0,) * num_numeric,
        low=(0.0,) * num_numeric,
        high=(1.0,) * num_numeric,
        fill=(None,) * num_numeric,
        target_mean=(0.0,) * num_targets,
        target_std=(1.0,) * num_targets,
        positive_rate=dict.fromkeys(binary, 0.24),
        target_transforms=tuple(target.transform for target in layout.targets),
        vectors={"polymer": unit},
        knots=((0.0, 1.0),) * num_numeric,
    )


def random_rows(
    layout: Layout, start: int, num_rows: int, generator: np.random.Generator
) -> RowBlock:
    """Return rows of patients that follow one another; every tenth patient validates."""
    rows_per_patient = min(ROWS_PER_PATIENT, layout.num_rows // NUM_PATIENTS)  # of a small table
    patient = (start + np.arange(num_rows)) // rows_per_patient
    targets = generator.normal(size=(num_rows, len(layout.targets))).astype(np.float32)
    binary = [number for number, target in enumerate(layout.targets) if target.kind == "binary"]
    targets[:, binary] = targets[:, binary] > 0.7
    string_id = generator.integers(0, NUM_STRINGS, (num_rows, 1), dtype=np.int32)
    return RowBlock(
        string_id=string_id,
        string_hash=text_hashes(STRINGS)[string_id],
        numeric=np.abs(generator.normal(size=(num_rows, len(layout.numeric)))).astype(np.float32)
        + 0.1,
        category=generator.integers(0, 8, (num_rows, 1), dtype=np.int32),
        targets=targets,
        weight=np.where(patient % 6 == 0, 5, 1).astype(np.float32),
        group=np.full(num_rows, -1, dtype=np.int32),
        stratum=np.full(num_rows, -1, dtype=np.int32),
        split=(patient % 10 == 0).astype(np.int8),
        fold=np.full(num_rows, -1, dtype=np.int16),
        facets=np.zeros((num_rows, 0), dtype=np.int32),
    )
