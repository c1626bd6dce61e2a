"""What the loops of `peers` have in common: the same rows, model and loss, and our own loop."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.harness.setting import DROPOUT_OFF, experiment_of
from benchmarks.harness.stepper import Stepper, batch_of, device
from benchmarks.harness.timing import timed
from embedcache.cache.reader import open_cache
from fusionnet.assemble import build_model
from fusionnet.rows.tensors import RowTable
from fusionnet.train.runlog import peak_rss_bytes
from fusionnet.train.sizing import set_threads
from fusionnet.workflow.recipes import recipe_of

# the learning rates are at their peaks from the first step on
FIXED = (*DROPOUT_OFF, "optim.warmup_epochs=0")
Answer = dict[str, float]


class Ours:
    """This project, in one of its modes."""

    def __init__(self, spec: dict[str, Any]) -> None:
        overrides = [*FIXED, *spec["overrides"]]
        self._stepper = Stepper(
            Path(spec["folder"]),
            spec["mode"],
            spec["precision"],
            spec["rows"],
            spec["micro_rows"],
            overrides,
        )
        self._batch = batch_of(self._stepper.cache, spec["rows"])

    def __call__(self, _request: Any) -> Answer:
        """Take one step."""
        seconds = self._stepper.step(self._batch)
        assert self._stepper.losses is not None
        return {
            "seconds": seconds,
            "loss": float(self._stepper.losses[0]),
            "peak_rss_bytes": peak_rss_bytes(),
        }


class Peer:
    """What the other loops share: rows, a model of equal initial weights, and its loss."""

    def __init__(self, spec: dict[str, Any]) -> None:
        experiment = experiment_of(
            Path(spec["folder"]), "naive", spec["precision"], [*FIXED, *spec["overrides"]]
        )
        alone = SimpleNamespace(device=device(), local_size=1)
        self.take_cores = partial(set_threads, experiment.train.cpu_threads, alone)
        self.take_cores()
        self.cache = open_cache(experiment.cache.path)
        self.config = experiment.encoder
        self.optim = experiment.optim
        recipe = recipe_of(experiment, self.cache)
        self.model = build_model(recipe, self.cache.layout, self.cache.scaling, device()).train()
        (self.encoder,) = self.model.encoders.values()
        self.batch = batch_of(self.cache, spec["rows"])
        self.rows = spec["rows"]
        self.micro_rows = spec["micro_rows"]
        self.num_micro = -(-self.rows // self.micro_rows)
        self.denominators = self.batch.loss_denominators()
        strings = self.cache.strings(self.cache.layout.strings[0].name)
        self.tokens = strings.tokens
        self.texts = [strings.text[string] for string in self.batch.string_id[:, 0].tolist()]
        groups = [group for group in self.model.parameter_groups(self.optim) if group["params"]]
        self.adam = torch.optim.AdamW(
            groups,
            betas=self.optim.betas,
            eps=self.optim.eps,
            weight_decay=self.optim.weight_decay,
            fused=True,
        )
        self.prepare(spec)

    def prepare(self, spec: dict[str, Any]) -> None:
        """Set up the peer's own parts."""

    def __call__(self, _request: Any) -> Answer:
        """Take one step."""
        self.total = 0.0
        seconds = timed(self.step)
        return {"seconds": seconds, "loss": self.total, "peak_rss_bytes": peak_rss_bytes()}

    def step(self) -> None:
        """Back-propagate all micro-batches, then update."""
        self.backward()
        self.update()

    def backward(self) -> None:
        """Leave the step's gradient."""
        for rows, vectors in self.vectors():
            loss = self.loss(vectors, rows)
            self.total += float(loss.detach())
            loss.backward()

    def vectors(self) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B E"]]]:
        """Yield each micro-batch's rows and their vectors; peers with another `backward` do not."""
        raise NotImplementedError

    def pooled(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"]
    ) -> Float[Tensor, "B E"]:
        """Return [CLS] of each row's string."""
        with self.model.autocast():
            output = self.encoder.model(input_ids=input_ids, attention_mask=attention_mask)
            return output.last_hidden_state[:, 0].float()

    def loss(
        self, vectors: Float[Tensor, "B E"], rows: Int[Tensor, " B"], share: float | None = None
    ) -> Float[Tensor, ""]:
        """Return the micro-batch's part of the step's loss."""
        batch: RowTable = self.batch.take(rows)
        index = torch.arange(len(rows), device=rows.device).unsqueeze(1)
        share = 1 / self.num_micro if share is None else share
        return self.model(
            [vectors],
            replace(batch.inputs, string_id=index),
            batch.targets,
            batch.weight,
            self.denominators,
            share,
        ).total

    def update(self) -> None:
        """Clip and take AdamW's step."""
        parameters = [each for group in self.adam.param_groups for each in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.optim.clip)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
