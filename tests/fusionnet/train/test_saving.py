"""The saving that a training tells is that of its own rows, columns and mode."""

from pathlib import Path

import pytest

from embedcache.build.report import BuildReport
from embedcache.cache.reader import open_cache
from fusionnet.experiment import load_experiment
from fusionnet.rows.resident import ResidentRows
from fusionnet.rows.tensors import load_rows
from fusionnet.train.saving import saving_in_words, saving_of_cache, saving_of_rows


def test_columns_of_one_encoder_share_strings_and_others_do_not(tiny_experiment: Path) -> None:
    experiment = load_experiment(tiny_experiment)
    cache = open_cache(experiment.cache.path)
    rows = ResidentRows(load_rows(cache, "train"))
    shared = [experiment.encoder, experiment.encoder]
    saving = saving_of_rows(cache, shared, rows, 10**6)
    assert saving is not None
    assert (saving.num_rows, saving.strings, saving.row_strings) == (140, 7, 280)
    assert saving.tokens == cache.layout.strings_of("polymer").num_tokens
    own = experiment.encoder.model_copy(update={"memory_budget_gib": 1.0})
    apart = saving_of_rows(cache, [experiment.encoder, own], rows, 10**6)
    assert apart is not None
    assert apart.strings == 7 + 3
    streamed = saving_of_cache(cache, shared, 64)
    assert streamed is not None
    assert saving_in_words(streamed).startswith("each step of 64 rows encodes 7 strings (")
    report = BuildReport.of(cache, "built")
    assert report.saving is not None
    assert (report.saving.strings, report.saving.row_strings) == (7, 840)
    assert "each string is encoded once: 7 strings (" in report.summary()


@pytest.mark.parametrize("mode", ["frozen", "naive", "per_microbatch"])
def test_where_no_string_is_encoded_once_nothing_is_told(mode: str, tiny_experiment: Path) -> None:
    experiment = load_experiment(tiny_experiment, [f"encoder.mode={mode}"])
    cache = open_cache(experiment.cache.path)
    rows = ResidentRows(load_rows(cache, "train"))
    saving = saving_of_rows(cache, [experiment.encoder] * 2, rows, 64)
    assert saving_in_words(saving) == ""
