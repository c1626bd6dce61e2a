"""What a run leaves for other tools: adapter, plain weights, tokenizer, model card.

Everything is made from the best checkpoint as it lies on disk, and written beside its final name,
then put in place by rename.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save

from embedcache.encoder.lora import save_adapter
from embedcache.encoder.tokenizer import load_tokenizer
from embedcache.files import atomic_write
from fusionnet.recipe import encoder_of_column
from fusionnet.runfolder.listing import check_own, list_files, write_listed
from fusionnet.trained.card import model_card
from fusionnet.trained.encoder import trained_encoder
from fusionnet.trained.run import TrainedRun, load_run


def export_run(folder: Path) -> None:
    """Write what other tools read of the run's best checkpoint.

    That is adapter/ (PEFT), tokenizer/, network.safetensors and README.md, the model card.
    With several encoders the folders are adapter_<string column>/ and tokenizer_<string column>/; a
    frozen run has no adapter, and one without a language model neither.
    """
    run = load_run(folder, "best")
    names = [spec.name for spec in run.layout.strings if spec.width]
    keys = list(dict.fromkeys(encoder_of_column(run.recipe, names))) if names else []
    for name in keys:
        suffix = "" if len(keys) == 1 else f"_{name}"
        if run.recipe.is_live:
            with _own_folder(run, f"adapter{suffix}") as partial:
                _write_adapter(run, name, partial)
        config = run.recipe.encoders[names.index(name)]
        with _own_folder(run, f"tokenizer{suffix}") as partial:
            load_tokenizer(config).save_pretrained(partial)
    state = run.model.state_dict()
    weights = {key: value.detach().contiguous().cpu() for key, value in state.items()}
    metadata = {"format": "pt", "epoch": str(run.epoch)}
    for name, content in (
        ("network.safetensors", save(weights, metadata=metadata)),
        ("README.md", model_card(run).encode()),
    ):
        write_listed(folder, run.run_id, folder / name, content)


@contextmanager
def _own_folder(run: TrainedRun, name: str) -> Iterator[Path]:
    """Yield a path for a folder inside the run's, which becomes it; its files are listed first."""
    check_own(run.folder, name)
    list_files(run.folder, run.run_id, [name])
    with atomic_write(run.folder / name) as partial:
        yield partial
        list_files(run.folder, run.run_id, [f"{name}/{file.name}" for file in partial.iterdir()])


def _write_adapter(run: TrainedRun, column: str, target: Path) -> None:
    """Write one encoder's adapter, without the empty model card that PEFT puts beside it."""
    save_adapter(trained_encoder(run, column), target)
    (target / "README.md").write_text(
        f"LoRA adapter of the '{column}' encoder, from epoch {run.epoch} of {run.name}; see"
        " ../README.md.\n",
        encoding="utf-8",
    )
    for file in target.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner can read
