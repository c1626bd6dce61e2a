"""The Hugging Face Trainer as one of the loops of `peers`."""

import queue
import tempfile
import threading
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.harness.stepper import device
from benchmarks.peer_base import Answer, Peer
from embedcache.encoder.tokenizer import load_tokenizer
from fusionnet.train.runlog import peak_rss_bytes


class HuggingFaceTrainer(Peer):
    """transformers' Trainer: a custom model, dynamic padding, accumulation, its own clipping.

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
        data = [
            {"input_ids": self._ids(string), "row": row}
            for row, string in enumerate(self.batch.string_id[:, 0].tolist())
        ]
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
            partial(_collate, load_tokenizer(self.config)),
            data,
            optimizers=(self.adam, constant),
            callbacks=[_Turns(self._go, self._done)],
        ).train()

    def _ids(self, string: int) -> list[int]:
        """Return the token ids of a string."""
        start, stop = self.tokens.offsets[string : string + 2].tolist()
        return self.tokens.values[start:stop].tolist()


def _collate(tokenizer: Any, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return rows padded to the longest."""
    ids = {"input_ids": [row["input_ids"] for row in rows]}
    padded = tokenizer.pad(ids, return_tensors="pt")
    return {
        "input_ids": padded["input_ids"],
        "attention_mask": padded["attention_mask"],
        "row": torch.tensor([row["row"] for row in rows]),
    }


class _TrainerModel(nn.Module):
    def __init__(self, peer: HuggingFaceTrainer) -> None:
        super().__init__()
        self.model = peer.model
        self._peer = [peer]  # in a list: it is no submodule

    def forward(self, input_ids: Tensor, attention_mask: Tensor, row: Tensor) -> dict[str, Tensor]:
        """Return the micro-batch's loss.

        The trainer divides it by the number of micro-batches, which is undone here.
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
