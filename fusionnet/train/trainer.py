"""All that one run holds while it trains, put together from its recipe and its cache."""

from dataclasses import dataclass, replace
from functools import cached_property

from embedcache.cache.reader import Cache
from embedcache.live.sources import VectorSource
from fusionnet.assemble import build_model, make_sources
from fusionnet.config.train import OptimConfig
from fusionnet.model.trainable import TrainableModel
from fusionnet.recipe import Recipe
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.resident import ResidentRows, RowSource
from fusionnet.rows.streaming import open_rows
from fusionnet.train.plain import PlainEngine
from fusionnet.train.protocols import StepEngine, Steps
from fusionnet.train.saving import saving_in_words, saving_of_rows
from fusionnet.train.schedule import Schedule, make_schedule
from fusionnet.train.sizing import (
    is_compiled,
    micro_batches_per_rank,
    set_threads,
    settled_precision,
)
from fusionnet.train.static import StaticSteps, why_deepspeed, why_no_graph
from fusionnet.train.step import EngineSteps
from fusionnet.train.tally import Tally
from fusionnet.train.world import World


@dataclass
class Trainer:
    """All that one run holds while it trains."""

    recipe: Recipe
    optim: OptimConfig
    cache: Cache
    world: World
    model: TrainableModel
    engine: StepEngine
    sources: list[VectorSource]
    steps: Steps
    why_not_static: str | None  # what keeps steps from being replayed as a CUDA graph
    plan: StepPlan
    schedule: Schedule
    train_rows: RowSource
    validation_rows: RowSource
    tally: Tally
    verbose: bool = True  # whether progress is shown

    @cached_property
    def saving(self) -> str:
        """What a step encodes instead of what, in words; "" where no string is encoded once."""
        encoders, batch_rows = self.recipe.encoders, self.plan.batch_rows
        return saving_in_words(saving_of_rows(self.cache, encoders, self.train_rows, batch_rows))


def make_trainer(
    recipe: Recipe,
    optim: OptimConfig,
    cache: Cache,
    world: World,
    pad_to: int | None = None,
    verbose: bool = True,
) -> Trainer:
    """Return a trainer at step 0; its recipe says what `train.precision: auto` came to.

    A process that no launcher started trains without DeepSpeed, which takes seconds to import and
    says much, unless its config asks for what only DeepSpeed does.
    """
    train = recipe.train.model_copy(
        update={"precision": settled_precision(recipe.train.precision, world)}
    )
    recipe = replace(recipe, train=train)
    set_threads(train.cpu_threads, world)
    train_rows, validation_rows = open_rows(cache, train, world.device)
    model = build_model(recipe, cache.layout, cache.scaling, world.device)
    sources = make_sources(model, recipe, cache, world.device, pad_to)
    num_micro_batches = micro_batches_per_rank(
        train, recipe.model, recipe.tasks, cache.layout, world, train_rows.num_rows
    )
    plan = StepPlan(
        train_rows.num_rows, train.batch_rows, num_micro_batches, world.size, train.seed
    )
    if is_compiled(train, world.device, plan.steps_per_epoch * train.epochs):
        model.network.compile(fullgraph=True, dynamic=True)
    schedule = make_schedule(optim, plan.steps_per_epoch, train.epochs)
    groups = model.parameter_groups(optim)
    tally = Tally([spec.num_strings for spec in cache.layout.strings], world.device)
    with model.autocast():
        why_not = why_no_graph(train, world, train_rows, sources)
    engine: StepEngine
    steps: Steps
    if why_not is None and isinstance(train_rows, ResidentRows):
        engine = PlainEngine(model, groups, world, optim, num_micro_batches)
        steps = StaticSteps(engine, sources, train_rows.table, plan, schedule, tally, captured=True)
    else:
        if not world.is_launched and why_deepspeed(train, world) is None:
            engine = PlainEngine(model, groups, world, optim, num_micro_batches)
        else:
            from fusionnet.train.engine import Engine

            engine = Engine(model, groups, world, train, optim, num_micro_batches)
        steps = EngineSteps(engine, sources, train_rows, plan, schedule, tally)
    return Trainer(
        recipe=recipe,
        optim=optim,
        cache=cache,
        world=world,
        model=model,
        engine=engine,
        sources=sources,
        steps=steps,
        why_not_static=why_not,
        plan=plan,
        schedule=schedule,
        train_rows=train_rows,
        validation_rows=validation_rows,
        tally=tally,
        verbose=verbose,
    )
