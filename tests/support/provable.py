"""A training in one process, of which any step can be proven."""

from pathlib import Path

import torch

from embedcache.cache.reader import open_cache
from embedcache.live.features import bare
from embedcache.live.shared import SharedColumn
from embedcache.live.step import LiveEncoder
from fusionnet.assemble import build_model, make_sources
from fusionnet.experiment import load_experiment
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.resident import ResidentRows
from fusionnet.rows.tensors import load_rows
from fusionnet.train.plain import PlainEngine
from fusionnet.train.proof.prover import Prover, due_steps, subject_of
from fusionnet.train.proof.record import Proof, ProofFile
from fusionnet.train.schedule import make_schedule
from fusionnet.train.static import StaticSteps
from fusionnet.train.step import EngineSteps
from fusionnet.train.tally import Tally
from fusionnet.train.world import World
from fusionnet.workflow.recipes import recipe_of

OVERRIDES = [
    "train.batch_rows=60",
    "optim.clip=0.5",
    "optim.warmup_epochs=0",
    "optim.lr_encoder=0.01",  # B leaves zero, and A gets gradients
    "model.standardize_vectors=false",  # it multiplies the encoder's rounding
]


class Alone(World):
    """One rank on the CPU, without its process group."""

    def __init__(self) -> None:
        self.rank, self.size, self.device = 0, 1, torch.device("cpu")


class Training:
    """A training that has taken two steps, and the third one's rows."""

    def __init__(self, config: Path, folder: Path, *overrides: str, static: bool = False) -> None:
        experiment = load_experiment(config, [*OVERRIDES, *overrides])
        cache = open_cache(experiment.cache.path)
        recipe = recipe_of(experiment, cache)
        self.model = build_model(recipe, cache.layout, cache.scaling).train()
        self.sources = make_sources(self.model, recipe, cache)
        self.table = load_rows(cache, "train")
        self.plan = StepPlan(self.table.num_rows, experiment.train.batch_rows, 3, 1, 0)
        groups = self.model.parameter_groups(experiment.optim)
        self.world = Alone()
        self.engine = PlainEngine(self.model, groups, self.world, experiment.optim, 3)
        self.tally = Tally([spec.num_strings for spec in cache.layout.strings], self.world.device)
        schedule = make_schedule(experiment.optim, self.plan.steps_per_epoch, 2)
        rest = (self.plan, schedule, self.tally)
        self.steps: EngineSteps | StaticSteps
        if static:
            self.steps = StaticSteps(self.engine, self.sources, self.table, *rest, captured=False)
        else:
            rows = ResidentRows(self.table)
            self.steps = EngineSteps(self.engine, self.sources, rows, *rest)
        self.file = ProofFile(folder / "tiny_proof.json", due_steps(recipe, self.plan), 0)
        self.prover = Prover(
            subject_of(self.model, recipe, cache),
            cache,
            self.engine,
            self.steps,
            self.sources,
            self.plan,
            experiment.optim,
            self.file,
        )
        taken = self.steps.of_epoch(0)
        next(taken), next(taken)
        taken.close()
        self.rows = self.table.take(list(self.plan.steps(0))[2])
        self.state = self.engine.state()

    def reset(self) -> None:
        """Forget what a fault has left."""
        for source in map(bare, self.sources):
            if isinstance(source, LiveEncoder | SharedColumn):
                source.abandon_step()
        self.engine._num_read = 0
        self.engine.hold_updates(False)
        self.engine._adam.zero_grad()
        self.engine.load_state(self.state)
        self.model.train()

    def prove(self) -> Proof:
        """Prove the third step and return what was found."""
        self.prover.look(2, self.rows)
        return self.file.proofs[-1]

    def epoch(self) -> None:
        """Take an epoch and check the count of its rows."""
        self.tally.begin()
        for _ in self.steps.of_epoch(1):
            pass
        self.tally.check(self.plan.num_rows, self.world, self.table)
