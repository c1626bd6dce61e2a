"""What a run will need is counted before it is made, and a run that cannot fit is told so."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from embedcache.cache.reader import Cache, open_cache
from embedcache.errors import ConfigError
from embedcache.live.bounded import measure_budget
from embedcache.live.step import LiveEncoder
from fusionnet.assemble import build_model
from fusionnet.experiment import load_experiment
from fusionnet.recipe import Recipe
from fusionnet.train import footprint
from fusionnet.train.world import World
from fusionnet.workflow.recipes import recipe_of


class Alone(World):
    """One rank on the CPU, without a process group."""

    def __init__(self) -> None:
        self.rank, self.size, self.local_size, self.device = 0, 1, 1, torch.device("cpu")


def setting(config: Path, *overrides: str) -> tuple[Recipe, Cache]:
    experiment = load_experiment(config, list(overrides))
    cache = open_cache(experiment.cache.path)
    return recipe_of(experiment, cache), cache


def test_the_network_is_counted_as_it_will_be(tiny_experiment: Path) -> None:
    recipe, cache = setting(tiny_experiment)
    model = build_model(recipe, cache.layout, cache.scaling)
    made = sum(each.numel() for each in [*model.network.parameters(), *model.loss.parameters()])
    assert footprint.network_parameters(recipe, cache) == made


def test_what_autograd_keeps_of_strings_is_estimated(tiny_experiment: Path) -> None:
    recipe, cache = setting(tiny_experiment)
    spec = cache.layout.strings[0]
    live = LiveEncoder.from_cache(cache, spec.name)
    tokens = cache.strings(spec.name).tokens
    measured = measure_budget(live.encoder, tokens, None).bytes_per_token * spec.num_tokens
    estimated = footprint.string_bytes(recipe.encoders[0], spec, rows=1000)
    assert 0.5 * measured < estimated < 2 * measured


@pytest.mark.parametrize(
    ("overrides", "part", "factor"),
    [
        (("train.micro_batch_rows=8", "train.batch_rows=64"), "micro-batch", 0.5),
        (("model.fusion_width=128",), "network", 2),
        (("encoder.mode=frozen",), "strings", 0),
    ],
)
def test_each_part_follows_what_it_is_made_of(
    tiny_experiment: Path, overrides: tuple[str, ...], part: str, factor: float
) -> None:
    base = ("train.micro_batch_rows=16", "train.batch_rows=64")
    before = footprint.memory_parts(*setting(tiny_experiment, *base), Alone())
    after = footprint.memory_parts(*setting(tiny_experiment, *base, *overrides), Alone())
    if factor <= 1:
        assert after[part] == factor * before[part] < before[part]
    else:
        assert after[part] > factor * before[part]


def test_a_run_that_may_not_fit_says_what_to_change(
    tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, cache = setting(tiny_experiment)
    assert "NOTE" not in str(footprint.check_memory(recipe, cache, Alone()))
    total = sum(footprint.memory_parts(recipe, cache, Alone()).values())
    monkeypatch.setattr(footprint, "available_bytes", lambda: total - 1)
    assert "NOTE" in (text := str(footprint.check_memory(recipe, cache, Alone())))
    assert any(remedy in text for remedy in footprint.REMEDIES.values())


def test_a_run_whose_rows_cannot_fit_is_refused(
    tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, cache = setting(tiny_experiment, "train.rows=resident")
    layout = cache.layout.model_copy(update={"num_rows": 10**12})
    monkeypatch.setattr(cache, "layout", layout)
    with pytest.raises(ConfigError, match=r"does not fit into memory.*train\.rows=streaming"):
        footprint.check_memory(recipe, cache, Alone())
    streamed = replace(recipe, train=recipe.train.model_copy(update={"rows": "auto"}))
    footprint.check_memory(streamed, cache, Alone())


def test_a_limit_of_the_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(footprint, "LIMITS", ((str(limit), str(used)),))
    machine = footprint.available_bytes()
    for text, left in (("max", None), ("5000", 4000), ("500", 0)):
        limit.write_text(f"{text}\n")
        used.write_text("1000\n")
        found = footprint.available_bytes()
        assert found == left if left is not None else found > 0.5 * machine
