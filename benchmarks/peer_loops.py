"""The same training as others offer it: same rows, encoder, LoRA, fusion network, loss, optimizer,
precision and micro-batches; theirs is the loop.

Each is written as its documentation shows, with our network behind its text encoder, so that losses
can be compared step by step and nobody is faster by doing less. None of them knows that rows share
strings. What each does before training (tokenising the table once) is not timed.
"""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.stepper import device
from benchmarks.peer_base import Ours, Peer
from benchmarks.peer_trainer import HuggingFaceTrainer
from embedcache.encoder.tokenizer import load_tokenizer


class PyTorchFrame(Peer):
    """PyTorch Frame's fine-tuning of a text_tokenized column.

    Its Dataset, DataLoader and nested tensors, a PEFT model over them.
    """

    def prepare(self, spec: dict[str, Any]) -> None:
        """Materialise the table: text tokenised once, row numbers for the other features."""
        import pandas
        from torch_frame import numerical, text_tokenized
        from torch_frame.config.text_tokenizer import TextTokenizerConfig
        from torch_frame.data import DataLoader, Dataset

        tokenizer = load_tokenizer(self.config)
        self._text, self._number = text_tokenized, numerical

        def tokenize(texts: list[str]) -> list[dict[str, Tensor]]:
            encoded = tokenizer(texts, truncation=False, padding=False)
            return [
                {key: torch.tensor(encoded[key][index]) for key in ("input_ids", "attention_mask")}
                for index in range(len(texts))
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
            rows = frame.feat_dict[self._number][:, 0].long()
            yield rows, self.pooled(text["input_ids"], text["attention_mask"])


class SentenceTransformers(Peer):
    """sentence-transformers: its Transformer and Pooling modules over our adapted model.

    Texts are preprocessed batch by batch, as its trainer does.
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
            tensors = {
                key: value.to(device())
                for key, value in features.items()
                if isinstance(value, Tensor)
            }
            with self.model.autocast():
                yield rows, self._model(tensors)["sentence_embedding"].float()


class GradientCache(Peer):
    """luyug/GradCache: all rows of the step encoded in chunks, the loss on all of them at once.

    First without graph; then the chunks again with graph.
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
