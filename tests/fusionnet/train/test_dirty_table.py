"""A table with gaps, rare categories and broken rows from build to prediction, by config alone."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from forks import Forks
from jaxtyping import Float
from provable import Training
from shared_fixtures import tiny_config, tiny_frame
from torch import Tensor

from embedcache.cache.reader import open_cache
from embedcache.errors import ProofError
from embedcache.scaling import Scaling
from fusionnet import RewardModel
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.experiment import load_experiment
from fusionnet.trained.run import load_run
from fusionnet.workflow.building import build_experiment


def dirty_frame() -> pl.DataFrame:
    """Return the tiny table with gaps in two features, a rare kind and two refused strings."""
    rng = np.random.default_rng(5)
    frame = tiny_frame()
    gaps = {f"x{k}": pl.Series(rng.random(frame.height) < 0.2) for k in (0, 2)}
    smiles = frame["smiles"].to_list()
    smiles[10:12] = ["CCO", "[R]CC[R]"]
    return frame.with_columns(
        pl.Series("smiles", smiles),
        *(pl.when(gap).then(None).otherwise(name).alias(name) for name, gap in gaps.items()),
        kind=pl.when(pl.int_range(pl.len()) == 7).then(pl.lit("rare")).otherwise("kind"),
    )


@pytest.fixture(scope="module", params=["single", "modality"])
def config(
    request: pytest.FixtureRequest,
    tiny_encoder_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("dirty")
    dirty_frame().write_parquet(folder / "table.parquet")
    tiny = tiny_config(folder, tiny_encoder_folder)
    tiny["data"] |= {
        "on_invalid": "skip",
        "numeric": [
            {"column": "x0", "if_null": "indicator", "feature_group": "first"},
            {"column": "x1", "low": 0, "high": 100},
            {"column": "x2", "transform": "log10", "if_null": "mean"},
        ],
        "categories": [{"column": "kind", "other": "rest", "min_rows": 5}],
    }
    if request.param == "modality":
        tiny["model"]["fusion"] = "modality"
    tiny["train"]["prove"] = 2
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tiny))
    experiment = load_experiment(file)
    build_experiment(experiment)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_training_reads_what_the_proof_reads(
    static: bool, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Training(config, tmp_path, static=static).prove().passed

    def zeros(self: Scaling, numeric: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        return torch.nan_to_num(numeric, nan=1.0)

    monkeypatch.setattr(Scaling, "_filled", zeros)
    with pytest.raises(ProofError, match="are not those of the cache"):
        Training(config, tmp_path, static=static).prove()


@pytest.mark.slow
def test_from_build_to_prediction(config: Path, forks: Forks, repository: Path) -> None:
    forks.run(repository / "jobs" / "train.py", "--config", config)
    run = load_run(config.parent / "run")
    cache = open_cache(config.parent / "cache.zarr")
    assert cache.layout.num_rows == 418
    found = evaluate_run(run, cache, "test", progress=False, with_baselines=True)
    assert np.isfinite(found.predictions).all()
    frame = dirty_frame()
    predicted = RewardModel(run).predict(frame)
    assert predicted.filter(pl.col("predicted_outcome").is_null())["reason"].to_list() == [
        "string column 'smiles': it is not a psmiles: it has no endpoint [*]: a repeat unit has"
        " two; is it a molecule? then set kind: smiles",
        predicted["reason"][11],
    ]
    split = np.insert(cache.rows().split, 10, [-1, -1])
    np.testing.assert_allclose(
        predicted.filter(pl.Series(split == 2)).select("predicted_outcome").to_numpy()[:, 0],
        found.predictions[:, 0],
        rtol=1e-3,
        atol=1e-4,
    )
    assert not predicted["known"][7]
    gap = frame.with_columns(x0=pl.lit(None, dtype=pl.Float64))
    assert RewardModel(run).predict(gap)["predicted_outcome"].is_finite().sum() == 418
