"""A pre-trained encoder's folder: as any Hugging Face encoder's, with a card that says what it is.

Its mark, `pretraining.json`, tells what it was made of. It is no stand-in: its weights are trained,
by this project and not by polyBERT's authors, and the card says so.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import DebertaV2Model, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from embedcache.encoder.standin import MARK as STANDIN_MARK
from embedcache.errors import EncoderError
from embedcache.files import atomic_write, clean_up_after_killed

MARK = "pretraining.json"
CARD = "README.md"
SPM = "spm.model"
CHECKPOINT, CORPUS = "checkpoint.pt", "corpus.safetensors"  # of a training that is not done


def check_folder(folder: Path) -> None:
    """Raise EncoderError for a folder that holds anything but an encoder that was written here."""
    if folder.exists() and not folder.is_dir():
        raise EncoderError(f"{folder} is a file; choose another folder for the encoder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        what = "a stand-in" if (folder / STANDIN_MARK).is_file() else "files of something else"
        raise EncoderError(f"{folder} holds {what}; choose another folder for the encoder")


def write_folder(
    folder: Path,
    model: DebertaV2Model,
    tokenizer: PreTrainedTokenizerBase,
    sentencepiece: bytes | None,
    facts: dict[str, Any],
) -> None:
    """Write the encoder, replacing an earlier one that was pre-trained into this folder."""
    transformers_logging.disable_progress_bar()
    with atomic_write(folder) as partial:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if sentencepiece is not None:
            (partial / SPM).write_bytes(sentencepiece)
        (partial / MARK).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        (partial / CARD).write_text(card(facts), encoding="utf-8")
        others = sorted({file.name for file in folder.glob("*")} - set(_names(partial)))
        if others:
            raise EncoderError(
                f"{folder} also holds {', '.join(others[:5])[:200]}, which would be deleted with"
                " the encoder that it replaces; move that, or choose another folder"
            )


def remove_work(work: Path) -> None:
    """Delete the checkpoint and the prepared corpus of a training that is done, and their folder
    where nothing else is in it.
    """
    for name in (CHECKPOINT, CORPUS):
        clean_up_after_killed(work / name)
        (work / name).unlink(missing_ok=True)
    with suppress(OSError):  # what else is in there is somebody's
        work.rmdir()


def _names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def card(facts: dict[str, Any]) -> str:
    """Return the model card."""
    corpus, settings, last = facts["corpus"], facts["settings"], facts["evaluations"][-1]
    objective = {
        "mlm": "masked language modelling (15 % of tokens; Devlin et al. 2019)",
        "ranks": "ranks of RDKit's 2D descriptors from the mean-pooled vector",
        "both": "masked language modelling (15 % of tokens; Devlin et al. 2019), and ranks of"
        " RDKit's 2D descriptors from the mean-pooled vector",
    }[settings["objective"]]
    measured = {
        "perplexity of masked tokens": last["perplexity"],
        "accuracy on masked tokens": last["accuracy"],
        "R2 of the descriptors' ranks": last["rank_r2"],
    }
    rows = [f"| {name} | {value:.3f} |" for name, value in measured.items() if value is not None]
    return "\n".join(
        [
            "# Encoder of polymers' repeat units (PSMILES)",
            "",
            "Pre-trained with embedcache and fusionnet, on strings alone. It has polyBERT's"
            " architecture and tokenizer, not its published weights.",
            "",
            f"- {facts['layers']} layers of width {facts['width']}, {facts['parameters']:,}"
            " parameters",
            f"- first weights: {facts['first_weights']}",
            f"- objective: {objective}",
            f"- corpus: {corpus['num_strings']:,} polymers ({corpus['num_tokens']:,} tokens), each"
            f" chain once; sha256 of the strings {corpus['digest']}",
            f"- {last['step']:,} steps, {last['tokens']:,} tokens, {last['seconds'] / 60:.1f} min"
            f" of training ({last['tokens_per_s']:,.0f} tokens/s, {facts['threads']} threads,"
            f" {settings['precision']}), seed {settings['seed']}",
            "",
            f"On {corpus['num_held_out']:,} polymers held out:",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "Use it as `encoder.source` with `encoder.pooling: mean`.",
            "",
        ]
    )
