"""Numbers by ranks, bins and waves, some missing: built, trained, read and rewarded as others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from shared_fixtures import tiny_config, tiny_frame

from embedcache.build.decide import build_cache
from embedcache.cache.reader import open_cache
from embedcache.config.split import SPLITS
from embedcache.errors import ConfigError
from fusionnet import RewardModel
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.trained.export import export_run
from fusionnet.trained.run import load_run
from fusionnet.workflow.training import train_experiment

FORMS = [("ple", "modality"), ("ple", "joint"), ("periodic", "mlp"), ("linear", "joint")]
Maker = Callable[..., Experiment]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path) -> Maker:
    """Build the tiny experiment with a feature that is missing here and there, and one by ranks."""

    def make(change: Callable[[pl.DataFrame], pl.DataFrame] | None = None, **model: Any) -> Any:
        folder = tmp_path_factory.mktemp("numbers")
        number = pl.int_range(pl.len())
        frame = tiny_frame().with_columns(
            x1=pl.when(number % 7 != 0).then("x1"), same=pl.lit(2.5), flag=number % 5 == 0
        )
        frame = frame if change is None else change(frame)
        frame.write_parquet(folder / "table.parquet")
        config = tiny_config(folder, tiny_encoder_folder)
        config["data"]["numeric"] = [
            {"column": "x0", "feature_group": "first"},
            {"column": "x1", "if_null": "indicator"},
            {"column": "x2", "transform": "quantile", "if_null": "median"},
            {"column": "same"},
            {"column": "flag"},
        ]
        config["encoder"]["mode"] = "frozen"
        config["model"] |= {"linear_skip": True, "feature_noise": {"first": 0.1}, **model}
        config["train"]["prove"] = 1
        config["reward"] = {"terms": [{"task": "ef", "weight": 1.0}]}
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        experiment = load_experiment(file)
        parts = (experiment.data, experiment.targets, experiment.split, experiment.encoder)
        build_cache(*parts, experiment.cache)
        return experiment

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("numeric", "fusion"), FORMS)
def test_a_training_is_proven_and_read(numeric: str, fusion: str, make: Maker) -> None:
    experiment = make(numeric=numeric, fusion=fusion)
    folder = Path(experiment.run.dir)
    train_experiment(experiment, "config.yaml", verbose=False)
    run = load_run(folder)
    assert run.certificate.startswith("proven")
    assert run.scaling == open_cache(experiment.cache.path).scaling
    found = evaluate_run(run, open_cache(experiment.cache.path), "test", progress=False)
    assert json.dumps(found.to_json(run))
    export_run(folder)

    model, frame = RewardModel(run), pl.read_parquet(experiment.data.files[0])
    predicted = model.predict(frame)
    assert predicted["predicted_outcome"].is_finite().all()
    far = frame.with_columns(x0=pl.lit(1e6), x2=pl.lit(-1e6), x1=pl.lit(None, dtype=pl.Float64))
    beyond = model.predict(far)
    assert beyond["predicted_outcome"].is_finite().all()
    assert beyond["outside"].all()
    vectors, inputs = model.inputs(frame)
    inputs.numeric.requires_grad_()
    model.differentiable(vectors, inputs).sum().backward()
    moved = inputs.numeric.grad.abs().sum(0)
    assert moved.isfinite().all()
    assert (moved[:3] > 0).all()


def test_bins_and_ranks_are_those_of_the_train_rows_alone(make: Maker) -> None:
    first = open_cache(make().cache.path)
    is_train = first.rows().split == SPLITS.index("train")

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        others = pl.Series(~is_train)
        return frame.with_columns(
            pl.when(others).then(77.0).otherwise(name).alias(name) for name in ("x0", "x2", "same")
        )

    again = open_cache(make(change).cache.path)
    assert again.scaling.knots == first.scaling.knots
    assert again.scaling.mean == first.scaling.mean
    values = first.rows().numeric[is_train]
    assert len(values) <= 257, "each train row's value is a knot"
    for place, knots in enumerate(first.scaling.knots):
        known = values[~np.isnan(values[:, place]), place]
        np.testing.assert_allclose(sorted(known), knots, rtol=1e-6)


def test_an_embedding_of_no_numbers_is_refused(make: Maker) -> None:
    values = make().model_dump(mode="json")
    values["data"]["numeric"] = []
    values["model"] |= {"feature_noise": {}, "linear_skip": False, "numeric": "ple"}
    with pytest.raises(ValueError, match=r"model.numeric 'ple' is of data.numeric, which has no"):
        Experiment.model_validate(values)


def test_numbers_are_embedded_in_the_forms_that_there_are(make: Maker) -> None:
    with pytest.raises(ConfigError, match=r"numeric.*'linear', 'ple' or 'periodic'"):
        load_experiment(Path(make().run.dir).with_name("config.yaml"), ["model.numeric=spline"])
