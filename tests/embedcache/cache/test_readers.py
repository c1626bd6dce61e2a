"""What users have already can read a cache: the examples of the store's docstring run as they
stand, and `jobs.inspect_cache` shows all there is.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.cache import reader as store
from fusionnet.commands import inspect_cache
from fusionnet.commands.command import run_job

EXAMPLES = re.findall(
    r"(?:^    .+\n){3}",
    (store.__doc__ or "").split("nothing of ours:")[1],
    flags=re.MULTILINE,
)


def test_there_are_three_examples_of_three_lines() -> None:
    assert [example.split()[1] for example in EXAMPLES] == ["zarr", "xarray", "pandas"]


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.split()[1])
def test_the_documented_examples_run_and_give_what_the_cache_gives(
    built_study: Any, monkeypatch: pytest.MonkeyPatch, example: str
) -> None:
    pytest.importorskip(example.split()[1])
    monkeypatch.chdir(Path(built_study.cache.path).parent)
    names: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in example.splitlines()), names)
    cache = built_study.open()
    rows, strings = cache.rows(), cache.strings("polymer")
    if "vectors" in names:
        np.testing.assert_array_equal(names["vectors"], strings.embeddings.numpy())
        assert list(names["text"]) == strings.text
    elif "train_mean" in names:
        np.testing.assert_allclose(
            names["train_mean"], rows.numeric[rows.split == 0].mean(0), rtol=1e-5
        )
        for name in ("string_id", "category", "targets", "weight", "group", "split"):
            found = names["rows"][name]
            np.testing.assert_array_equal(found.values, getattr(rows, name))
            assert found.dtype == getattr(rows, name).dtype, (
                "a fill value must not turn whole numbers into floats"
            )
        assert names["rows"].sizes["row"] == 240
    else:
        np.testing.assert_array_equal(names["frame"].to_numpy(), rows.numeric)
        assert list(names["frame"].columns) == [column.column for column in cache.layout.numeric]


def test_inspect_shows_everything(
    built_study: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["inspect_cache", built_study.cache.path, *arguments])
        with pytest.raises(SystemExit) as left:
            run_job(inspect_cache.main)
        assert left.value.code == 0
        return capsys.readouterr().out

    text = printed()
    for part in (
        "strings 'polymer': 5 distinct",
        "validation",
        "x [mm]",
        "inverse_kelvin",
        "rows/numeric",
        "240x5",
        "mean of",
        "from table.parquet with ",
    ):
        assert part in text
    found = json.loads(printed("--json"))
    assert found["arrays"]["rows/numeric"]["memory_bytes"] == 240 * 5 * 4
    assert found["arrays"]["strings/polymer/text"]["dtype"] == "text"
    root = Path(built_study.cache.path)
    chunks = sum(
        file.stat().st_size
        for file in root.rglob("*")
        if file.is_file() and "/c/" in file.as_posix()
    )
    assert sum(array["bytes"] for array in found["arrays"].values()) == chunks, (
        "every chunk belongs to an array that is listed"
    )
    assert {"strings", "splits", "targets"} <= set(found["layout"])
    assert found["layout"]["strings"][0]["encoder"]["source"] == built_study.encoder.source
    rows = [line["rows"] for line in found["report"]["split"]["lines"]]
    assert sum(rows[-3:]) == 240, "the splits' sizes are numbers"
    assert found["provenance"]["versions"]["zarr"]
