"""The same training as others offer it: same rows, encoder, LoRA, fusion network, loss, optimizer,
precision and micro-batches; theirs is the loop.

Each is written as its documentation shows, with our network behind its text encoder, so that losses
can be compared step by step and nobody is faster by doing less. None of them knows that rows share
strings. What each does before training (tokenising the table once) is not timed.
"""

import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.harness.setting import (
    DROPOUT_OFF,
    Stepper,
    batch_of,
    device,
    experiment_of,
    recipe_of,
)
from benchmarks.harness.timing import timed
from embedcache.cache.reader import open_cache
from embedcache.encoder.tokenizer import load_tokenizer
from fusionnet.assemble import build_model
from fusionnet.rows.tensors import RowTable
from fusionnet.train.loop import set_threads
from fusionnet.train.runlog import peak_rss_bytes

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
    """What the other loops share: rows, model of equal initial weights, and the loss of a
    micro-batch given its rows' vectors.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        experiment = experiment_of(
            Path(spec["folder"]), "naive", spec["precision"], [*FIXED, *spec["overrides"]]
        )
        self.take_cores = lambda: set_threads(
            experiment.train.cpu_threads, SimpleNamespace(device=device(), local_size=1)
        )
        self.take_cores()
        self.cache = open_cache(experiment.cache.path)
        self.config, self.optim = experiment.encoder, experiment.optim
        self.model = build_model(
            recipe_of(experiment, self.cache), self.cache.layout, self.cache.scaling, device()
        ).train()
        (self.encoder,) = self.model.encoders.values()
        self.batch = batch_of(self.cache, spec["rows"])
        self.rows, self.micro_rows, self.num_micro = (
            spec["rows"],
            spec["micro_rows"],
            -(-spec["rows"] // spec["micro_rows"]),
        )
        self.denominators = self.batch.loss_denominators()
        strings = self.cache.strings(self.cache.layout.strings[0].name)
        self.tokens, self.texts = (
            strings.tokens,
            [strings.text[number] for number in self.batch.string_id[:, 0].tolist()],
        )
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
        """Yield each micro-batch's rows and their vectors."""
        raise NotImplementedError

    def pooled(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"]
    ) -> Float[Tensor, "B E"]:
        """Return [CLS] of each row's string."""
        with self.model.autocast():
            return (
                self.encoder.model(input_ids=input_ids, attention_mask=attention_mask)
                .last_hidden_state[:, 0]
                .float()
            )

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
        nn.utils.clip_grad_norm_(
            [p for group in self.adam.param_groups for p in group["params"]], self.optim.clip
        )
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


class PyTorchFrame(Peer):
    """PyTorch Frame's fine-tuning of a text_tokenized column: its Dataset, DataLoader and nested
    tensors, a PEFT model over them.
    """

    def prepare(self, spec: dict[str, Any]) -> None:
        """Materialise the table: text tokenised once, numbers in a column of row numbers for the
        other features.
        """
        import pandas
        from torch_frame import numerical, text_tokenized
        from torch_frame.config.text_tokenizer import TextTokenizerConfig
        from torch_frame.data import DataLoader, Dataset

        tokenizer = load_tokenizer(self.config)
        self._text, self._number = text_tokenized, numerical

        def tokenize(texts: list[str]) -> list[dict[str, Tensor]]:
            encoded = tokenizer(texts, truncation=False, padding=False)
            return [
                {key: torch.tensor(encoded[key][place]) for key in ("input_ids", "attention_mask")}
                for place in range(len(texts))
            ]

        frame = pandas.DataFrame(
            {"polymer": self.texts, "row": [float(number) for number in range(self.rows)]}
        )
        kinds = {"polymer": text_tokenized, "row": numerical}
        data = Dataset(
            frame, kinds, col_to_text_tokenizer_cfg=TextTokenizerConfig(text_tokenizer=tokenize)
        ).materialize()
        self._loader = DataLoader(data.tensor_frame, batch_size=self.micro_rows)

    def vectors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what its loader gives."""
        for frame in self._loader:
            text = {
                key: nested[:, 0].to_dense(fill_value=0).squeeze(1)
                for key, nested in frame.feat_dict[self._text].items()
            }
            yield (
                frame.feat_dict[self._number][:, 0].long(),
                self.pooled(text["input_ids"], text["attention_mask"]),
            )


class SentenceTransformers(Peer):
    """sentence-transformers: its Transformer and Pooling modules over our adapted model, texts
    preprocessed batch by batch, as its trainer does.
    """

    def prepare(self, spec: dict[str, Any]) -> None:
        """Build its model around ours."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling

        transformer = Transformer(self.config.source)
        transformer.model, transformer.processor = self.encoder.model, load_tokenizer(self.config)
        self._model = SentenceTransformer(
            modules=[transformer, Pooling(self.encoder.width, "cls")], device=str(device())
        ).train()
        self.model.train()

    def vectors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield its sentence embeddings."""
        for rows in torch.arange(self.rows).split(self.micro_rows):
            features = self._model.preprocess([self.texts[row] for row in rows.tolist()])
            with self.model.autocast():
                yield (
                    rows,
                    self._model(
                        {
                            key: value.to(device())
                            for key, value in features.items()
                            if isinstance(value, Tensor)
                        }
                    )["sentence_embedding"].float(),
                )


class GradientCache(Peer):
    """luyug/GradCache: all rows of the step encoded in chunks without graph, the loss on all of
    them at once, then the chunks again with graph.
    """

    def prepare(self, spec: dict[str, Any]) -> None:
        """Pad the step's strings to the longest."""
        import gradcache

        # its release on PyPI imports itself under its repository's name
        sys.modules.setdefault("grad_cache", gradcache)
        from gradcache.grad_cache import GradCache

        ids, mask = self.tokens.take(self.batch.string_id[:, 0].cpu()).padded()
        self._inputs = {"input_ids": ids.to(device()), "attention_mask": mask.long().to(device())}
        every = torch.arange(self.rows, device=device())
        model = _Pooled(self.pooled)
        self._cache = GradCache(
            models=[model],
            chunk_sizes=self.micro_rows,
            loss_fn=lambda vectors: self.loss(vectors, every, 1.0),
        )

    def backward(self) -> None:
        """Leave the step's gradient."""
        self.total = float(self._cache(self._inputs))


class _Pooled(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self._call = call

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one vector per row."""
        return self._call(input_ids, attention_mask)


class HuggingFaceTrainer(Peer):
    """transformers' Trainer with a custom model, dynamic padding, gradient accumulation and its own
    clipping.

    It runs in a thread that stops after every optimizer step, so that it takes turns like the
    others.
    """

    def prepare(self, spec: dict[str, Any]) -> None:
        """Start the trainer, and let it wait before its first step."""
        self._go, self._done = queue.Queue[None](), queue.Queue[float]()
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()
        self._done.get()

    def __call__(self, _request: Any) -> Answer:
        """Let the trainer take one step."""
        self.total = 0.0
        self._go.put(None)
        return {"seconds": self._done.get(), "loss": self.total, "peak_rss_bytes": peak_rss_bytes()}

    def _train(self) -> None:
        self.take_cores()  # OpenMP counts threads for each thread that starts them
        tokens = [
            self.tokens.values[a:b].tolist()
            for a, b in zip(self.tokens.offsets[:-1], self.tokens.offsets[1:], strict=True)
        ]
        data = [
            {"input_ids": tokens[string], "row": row}
            for row, string in enumerate(self.batch.string_id[:, 0].tolist())
        ]
        tokenizer = load_tokenizer(self.config)

        def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
            padded = tokenizer.pad(
                {"input_ids": [row["input_ids"] for row in rows]}, return_tensors="pt"
            )
            return {
                "input_ids": padded["input_ids"],
                "attention_mask": padded["attention_mask"],
                "row": torch.tensor([row["row"] for row in rows]),
            }

        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=self.micro_rows,
            gradient_accumulation_steps=self.num_micro,
            num_train_epochs=10_000,
            max_grad_norm=self.optim.clip,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=device().type == "cpu",
            dataloader_pin_memory=False,
        )
        constant = torch.optim.lr_scheduler.LambdaLR(self.adam, lambda _: 1.0)
        Trainer(
            _TrainerModel(self),
            arguments,
            collate,
            data,
            optimizers=(self.adam, constant),
            callbacks=[_Turns(self._go, self._done)],
        ).train()


class _TrainerModel(nn.Module):
    def __init__(self, peer: HuggingFaceTrainer) -> None:
        super().__init__()
        self.model = peer.model
        self._peer = [peer]  # in a list: it is no submodule

    def forward(self, input_ids: Tensor, attention_mask: Tensor, row: Tensor) -> dict[str, Tensor]:
        """Return the micro-batch's loss; the trainer divides it by the number of micro-batches,
        which is undone here.
        """
        (peer,) = self._peer
        loss = peer.loss(peer.pooled(input_ids, attention_mask), row)
        peer.total += float(loss.detach())
        return {"loss": loss * peer.num_micro}


class _Turns(TrainerCallback):
    """Stops the trainer's thread between optimizer steps."""

    def __init__(self, go: queue.Queue[None], done: queue.Queue[float]) -> None:
        self._go, self._done, self._since = go, done, 0.0

    def on_train_begin(self, *arguments: Any, **keywords: Any) -> None:
        """Wait for the first turn."""
        self._pause()

    def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
        """Report the step and wait for the next turn."""
        self._pause()

    def _pause(self) -> None:
        self._done.put(time.perf_counter() - self._since)
        self._go.get()
        self._since = time.perf_counter()


LOOPS: dict[str, tuple[type, str | None]] = {
    "ours, per_step": (Ours, None),
    "ours, per_microbatch": (Ours, None),
    "Hugging Face Trainer": (HuggingFaceTrainer, "transformers"),
    "PyTorch Frame": (PyTorchFrame, "torch_frame"),
    "sentence-transformers": (SentenceTransformers, "sentence_transformers"),
    "GradCache": (GradientCache, "gradcache"),
}


def make(spec: dict[str, Any]) -> Any:
    """Return the worker of a loop."""
    os.environ.setdefault("WANDB_DISABLED", "true")
    return LOOPS[spec["loop"]][0](spec)
