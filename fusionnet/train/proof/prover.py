"""The certificate of a training: some of its steps recomputed row by row, and compared.

What is compared. A step's loss depends on LoRA's weights only through the vectors of its distinct
strings; training here makes use of that, of rows that have a computation in common, of passes
joined and split, and of an engine that reduces. None of it is to change a gradient. So at some
steps, chosen at random, the gradient that training uses (`retaken`) is held to the one that the
equations give as they stand (`plainly`), at the weights that the step starts from, for its rows.

Which rows. Of the first `MOST_ROWS` of a step, whose order is random, those of the first strings
that have `MOST_TOKENS` together; the first of them, up to `OWN_TOKENS` a rank, are encoded each for
itself. Rows with a ReLU at its kink are left out: rounding decides which of two gradients
they have. Training takes the step of these rows in as many micro-batches and on as many ranks
as it takes all. That all rows of all steps reach the network, once each and each with the vectors
of its own strings, is counted in every step (`tally`); some rows are read from the cache again.

How exactly. In fp32, whatever the run computes in, at most `LIMIT` apart; and once more in the
run's own precision, to what plain PyTorch reaches in it (`comparison`). What dropout draws is no
part of it: masks are drawn, and drop nothing. That both passes of bounded encoding draw the same is
seen to there, in every step (`embedcache.live.bounded`).

The steps are a function of the seed and of the run's number of steps, so a resumed run proves those
that are left. A step that fails ends the training before it is taken, by a ProofError.
"""

import math
import time
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from embedcache.cache.reader import Cache
from embedcache.errors import ProofError
from embedcache.live.features import bare
from embedcache.live.shared import SharedColumn
from embedcache.live.sources import VectorSource
from embedcache.live.step import LiveEncoder
from fusionnet.config.train import OptimConfig
from fusionnet.model.trainable import TrainableModel
from fusionnet.recipe import AUTOCAST_DTYPES, Recipe, encoder_of_column
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.tensors import RowTable
from fusionnet.train.proof.comparison import NORM, Gradients, Verdict, in_fp32, in_narrow_type
from fusionnet.train.proof.losses import regulariser_weights
from fusionnet.train.proof.plainly import Sample, Subject, far_from_kinks, plain_gradients
from fusionnet.train.proof.record import Proof, ProofFile, judgement
from fusionnet.train.proof.reread import num_differing
from fusionnet.train.proof.retaken import gradients_used, nothing_dropped
from fusionnet.train.protocols import StepEngine, Steps
from fusionnet.train.static import StaticSteps

MOST_ROWS = 256
MOST_TOKENS = 384  # of the rows' distinct strings together
OWN_TOKENS = 96  # of the rows that are encoded for themselves, on each rank
ROWS_READ_AGAIN = 8  # on each rank; each is a chunk of the cache


class Prover:
    """Looks at the due steps of a run, writes down what it finds, and raises where it is wrong."""

    def __init__(
        self,
        subject: Subject,
        cache: Cache,
        engine: StepEngine,
        steps: Steps,
        sources: Sequence[VectorSource],
        plan: StepPlan,
        optim: OptimConfig,
        file: ProofFile,
    ) -> None:
        self._subject, self._cache, self._file = subject, cache, file
        self._engine, self._steps, self._sources = engine, steps, sources
        self._plan, self._optim = plan, optim
        self.due: Collection[int] = due_steps(subject.recipe, plan)

    def look(self, step: int, rows: RowTable) -> None:
        """Recompute the step for a sample of its rows; raises ProofError where it differs."""
        started = time.perf_counter()
        world = self._engine.world
        rows = self._chosen(rows)
        num_differing_rows = int(world.sum(self._num_differing(rows)))
        verdicts = self._verdicts(step, rows)
        proof = Proof(
            step=step,
            rows=rows.num_rows,
            strings=tuple(len(column.unique()) for column in rows.string_id.unbind(1)),
            rows_encoded_for_themselves=self._sample(rows).own_rows,
            rows_that_differ_from_the_cache=num_differing_rows,
            precisions={name: judgement(verdict) for name, verdict in verdicts.items()},
            passed=num_differing_rows == 0 and all(each.passed for each in verdicts.values()),
            seconds=time.perf_counter() - started,
        )
        proof = world.broadcast(proof)
        if world.is_main:
            self._file.append(proof)
        if not proof.passed:
            raise ProofError(_message(proof))

    def _verdicts(self, step: int, rows: RowTable) -> dict[str, Verdict]:
        """Return what the comparison says in fp32 and in the run's precision, by its name."""
        model, recipe = self._subject.model, self._subject.recipe
        precision = recipe.train.precision
        self._measure_memory()
        used: dict[str, dict[str, Tensor]] = {}
        with nothing_dropped(model):
            for name in self._precisions():
                with model.computing_in(AUTOCAST_DTYPES[name]):
                    used[name] = gradients_used(self._engine, self._steps, step, rows, self._optim)
        model.eval()
        exact = self._plain(rows)
        verdicts = {}
        if "fp32" in used:
            verdicts["fp32"] = in_fp32(
                used["fp32"],
                exact,
                lambda: self._plain(rows, torch.float64),
                {"loss.log_variance": math.hypot(*regulariser_weights(recipe))},
                lambda seed: self._plain(rows, jitter=seed),
            )
        if precision in used and precision != "fp32":
            dtype = AUTOCAST_DTYPES[precision]
            assert dtype is not None
            own = self._plain(rows, autocast=dtype)
            verdicts[precision] = in_narrow_type(used[precision], own, exact, dtype)
        model.train()
        return verdicts

    def _precisions(self) -> list[str]:
        """Return what the step is taken in."""
        recipe = self._subject.recipe
        own = recipe.train.precision
        if own == "fp32":
            return [own]
        frozen_layers = any(encoder.lora.first_layer > 0 for encoder in recipe.encoders)
        if isinstance(self._steps, StaticSteps) and frozen_layers:
            return [own]  # the states below LoRA are held in it
        return ["fp32", own]

    def _measure_memory(self) -> None:
        """Let encoders measure what fits into memory as the run's steps would, not as these."""
        with self._subject.model.autocast():
            for source in map(bare, self._sources):
                if isinstance(source, LiveEncoder | SharedColumn):
                    source.measure()

    def _chosen(self, rows: RowTable) -> RowTable:
        """Return the rows that are recomputed, the same on every rank."""
        rows = rows.take(self._affordable(rows).to(rows.weight.device))
        self._subject.model.eval()
        far = torch.tensor(self._engine.world.broadcast(self._far(rows)))
        self._subject.model.train()
        return rows.take(far.nonzero().squeeze(1).to(rows.weight.device)) if far.any() else rows

    def _far(self, rows: RowTable) -> list[bool]:
        """Return which rows are far from where two gradients meet, on rank 0."""
        if not self._engine.world.is_main:
            return []
        return far_from_kinks(self._subject, rows).tolist()

    def _affordable(self, rows: RowTable) -> Int[Tensor, " B"]:
        """Return the positions of the first rows whose strings do not cost too much together."""
        chosen: list[int] = []
        strings: set[tuple[int, int]] = set()  # column and id
        left = MOST_TOKENS
        for position, row in enumerate(rows.string_id[:MOST_ROWS].tolist()):
            new = {(column, string) for column, string in enumerate(row)} - strings
            cost = sum(int(self._subject.tokens[column].lengths[string]) for column, string in new)
            if cost <= left or not chosen:
                chosen.append(position)
                strings |= new
                left -= cost
        return torch.tensor(chosen)

    def _sample(self, rows: RowTable) -> Sample:
        """Return this rank's share of the rows, cut as a step is."""
        world, num = self._engine.world, self._plan.num_micro_batches
        pieces = torch.arange(rows.num_rows, device=rows.weight.device).tensor_split(
            num * world.size
        )
        parts = [rows.take(piece) for piece in pieces[world.rank :: world.size]]
        string_id = torch.cat([part.string_id for part in parts]).cpu()
        num_tokens = torch.zeros(len(string_id), dtype=torch.int64)
        for column, tokens in zip(string_id.unbind(1), self._subject.tokens, strict=True):
            num_tokens += tokens.lengths[column]
        own_rows = int((num_tokens.cumsum(0) <= OWN_TOKENS).sum())
        seen = rows.targets.isfinite()
        denominators = torch.where(seen, rows.weight.double().unsqueeze(1), 0.0).sum(0)
        return Sample(parts, max(1, own_rows), denominators, share=1 / world.size)

    def _plain(
        self,
        rows: RowTable,
        dtype: torch.dtype = torch.float32,
        autocast: torch.dtype | None = None,
        jitter: int | None = None,
    ) -> Gradients:
        """Return the plain gradient of the rows, summed over ranks, and its norm, on the CPU."""
        own = plain_gradients(self._subject, self._sample(rows), dtype, autocast, jitter)
        flat = torch.cat([gradient.flatten() for gradient in own.values()])
        flat = self._engine.world.sum(flat).cpu()
        norm = torch.linalg.vector_norm(flat, dtype=torch.float64)
        cut = flat.split([gradient.numel() for gradient in own.values()])
        parts = {name: part.view(own[name].shape) for name, part in zip(own, cut, strict=True)}
        return {**parts, NORM: norm}

    def _num_differing(self, rows: RowTable) -> Tensor:
        """Return how many of some rows of this rank are not the cache's, as a tensor."""
        world = self._engine.world
        some = rows.take(slice(world.rank, None, world.size)).take(slice(0, ROWS_READ_AGAIN))
        return torch.tensor(num_differing(some.to("cpu"), self._cache), device=world.device)


def subject_of(model: TrainableModel, recipe: Recipe, cache: Cache) -> Subject:
    """Return what is recomputed of a model that trains on a cache."""
    names = [spec.name for spec in cache.layout.strings]
    device = next(model.network.parameters()).device
    strings = [cache.strings(name) for name in names]
    return Subject(
        model=model,
        recipe=recipe,
        layout=cache.layout,
        scaling=cache.scaling,
        encoder_of=tuple(encoder_of_column(recipe, names)),
        tokens=tuple(each.tokens.to(device) for each in strings),
        vectors=None if recipe.is_live else tuple(each.embeddings.to(device) for each in strings),
        features=tuple(each.features for each in strings),
    )


def due_steps(recipe: Recipe, plan: StepPlan) -> frozenset[int]:
    """Return the steps to prove, counted over the whole run; none in fp16.

    There a step may be skipped for its loss scale, and is then to have no gradient. They are of
    epochs that `train.early_stopping` cannot leave out.
    """
    train = recipe.train
    if train.precision == "fp16":
        return frozenset()
    generator = torch.Generator().manual_seed(train.seed)
    num_epochs = min(train.epochs, train.patience + 1)
    every = torch.randperm(plan.steps_per_epoch * num_epochs, generator=generator)
    return frozenset(every[: train.prove].tolist())


def _message(proof: Proof) -> str:
    """Return what is wrong with a step, for the user."""
    wrong = [
        f"in {name} the gradient of {part} is off by {error:.1e} of its norm (at most"
        f" {judged.limits[part]:.1e})"
        for name, judged in proof.precisions.items()
        for part, error in judged.errors.items()
        if not error <= judged.limits[part]
    ]
    if proof.rows_that_differ_from_the_cache:
        wrong.append(f"{proof.rows_that_differ_from_the_cache} rows are not those of the cache")
    return (
        f"step {proof.step} of this training does not compute what its equations say;"
        f" {proof.rows} of its rows were recomputed one by one:\n"
        + "\n".join(f"  - {line}" for line in wrong)
        + "\nThe step was not taken, and no weight of this run should be trusted. This is a fault"
        " of the software, a library or the machine, not of your data: please report it with the"
        " run's config and its *_proof.json. If other trainings pass on another machine, have this"
        " one's memory tested"
    )
