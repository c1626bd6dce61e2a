"""A trained run, loaded for prediction: no DeepSpeed, no raw table, no cache; the encoder only for strings that the run has never seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from embedcache.config import DataConfig, EncoderConfig, parse_config
from embedcache.encoder import StringEncoder, encode_all, load_encoder
from embedcache.errors import EncoderError, RunError
from embedcache.fingerprint import encoding_key
from embedcache.lora import add_lora
from embedcache.scaling import Scaling
from embedcache.store import Layout
from embedcache.tokens import load_tokenizer, tokenize
from fusionnet.assemble import Recipe, build_model, encoder_of_column, observed_tasks
from fusionnet.config import LossConfig, ModelConfig, RewardConfig, Task, TrainConfig
from fusionnet.model.joint import JointModel
from fusionnet.train.checkpoint import load_checkpoint

Moment = Literal["best", "final", "last"]


@dataclass(frozen=True)
class TrainedRun:
    """Everything that turns raw units into predictions, and what the run says of itself."""

    folder: Path
    name: str
    moment: Moment
    epoch: int
    config: dict[str, Any]
    data: DataConfig
    reward: RewardConfig
    recipe: Recipe
    layout: Layout
    scaling: Scaling
    identity: dict[str, str]
    records: list[dict[str, Any]]
    model: JointModel  # network and loss; encoders are loaded when a new string asks for one
    strings: dict[str, dict[str, int]]  # per string column: text -> row of `vectors`
    vectors: dict[str, Float[Tensor, "_ _"]]
    encoder_state: dict[str, Tensor]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that were trained, in the order of the outputs."""
        return self.recipe.tasks

    @property
    def standin(self) -> bool:
        """Whether any encoder was a stand-in without published weights."""
        return any(spec.standin for spec in self.layout.strings)


def load_run(folder: str | Path, moment: Moment = "best", device: torch.device | str = "cpu") -> TrainedRun:
    """Return a run from its folder; raises RunError where it is missing, incomplete or damaged. Executes no code from the files."""
    folder = Path(folder)
    configs = sorted(folder.glob("*_config.yaml"))
    if not configs:
        raise RunError(f"{folder} is not a run folder: it has no *_config.yaml; train first with: deepspeed jobs/train.py --config ...")
    name = configs[0].name.removesuffix("_config.yaml")
    checkpoint = load_checkpoint(folder / f"{name}_{moment}.pt")
    config = checkpoint["config"]
    written = yaml.safe_load(configs[0].read_text(encoding="utf-8"))  # reward and goals may be edited after training
    layout, scaling = Layout.model_validate_json(checkpoint["layout"]), Scaling.from_json(checkpoint["scaling"])
    data = parse_config(DataConfig, config["data"], f"{folder}: data")
    shared = parse_config(EncoderConfig, config["encoder"], f"{folder}: encoder")
    recipe = Recipe(
        tasks=observed_tasks(_tasks(config["tasks"], written.get("tasks", []), folder), layout),
        encoders=tuple(column.encoder or shared for column in data.strings),
        model=parse_config(ModelConfig, config["model"], f"{folder}: model"),
        loss=parse_config(LossConfig, config["loss"], f"{folder}: loss"),
        train=parse_config(TrainConfig, config["train"], f"{folder}: train"),
    )
    model = build_model(recipe, layout, scaling, device, live=False).eval().requires_grad_(False)
    state = checkpoint["model_state_dict"]
    model.load_state({key: value for key, value in state.items() if not key.startswith("encoders.")})
    return TrainedRun(
        folder=folder,
        name=name,
        moment=moment,
        epoch=checkpoint["epoch"],
        config=config,
        data=data,
        reward=parse_config(RewardConfig, written.get("reward", {}), f"{configs[0]}: reward"),
        recipe=recipe,
        layout=layout,
        scaling=scaling,
        identity=checkpoint["identity"],
        records=checkpoint["records"],
        model=model,
        strings={column: {text: place for place, text in enumerate(texts)} for column, texts in checkpoint["strings"].items()},
        vectors={column: table.to(device) for column, table in checkpoint["vectors"].items()},
        encoder_state={key: value for key, value in state.items() if key.startswith("encoders.")},
    )


def _tasks(trained: list[dict[str, Any]], written: list[dict[str, Any]], folder: Path) -> list[Task]:
    """Return the tasks as they were trained, with the goals as they are written now."""
    goals = {task.get("name"): task.get("goals", {}) for task in written}
    return [parse_config(Task, {**task, "goals": goals.get(task["name"], {})}, f"{folder}: tasks") for task in trained]


def vectors_of(run: TrainedRun, column: str, texts: Sequence[str]) -> Float[Tensor, "U E"]:
    """Return the run's vectors of prepared strings: known ones from the run, new ones through its encoder with its trained LoRA weights."""
    known, table = run.strings[column], run.vectors[column]
    new = [text for text in texts if text not in known]
    place = {**known, **{text: len(known) + number for number, text in enumerate(new)}}
    if new:
        table = torch.cat([table, _encode_new(run, column, new).to(table)])
    return table[torch.tensor([place[text] for text in texts], dtype=torch.int64, device=table.device)]


def trained_encoder(run: TrainedRun, column: str) -> StringEncoder:
    """Return the encoder of a string column with the run's LoRA weights; raises EncoderError where it is not the encoder that was trained."""
    names = [spec.name for spec in run.layout.strings]
    number = names.index(column)
    config, spec = run.recipe.encoders[number], run.layout.strings[number]
    found = encoding_key(config)
    if found != spec.encoding:
        raise EncoderError(f"{config.source} is not the encoder that run {run.folder} was trained with (weights, tokenizer or pooling differ)")
    encoder = load_encoder(config)
    if run.recipe.mode == "frozen":
        return encoder
    add_lora(encoder, config.lora)
    prefix = f"encoders.{encoder_of_column(run.recipe, names)[number]}."
    own = dict(encoder.named_parameters())
    with torch.no_grad():
        for key, value in run.encoder_state.items():
            if key.startswith(prefix):
                own[key.removeprefix(prefix)].copy_(value)
    return encoder.eval()


def _encode_new(run: TrainedRun, column: str, texts: Sequence[str]) -> Float[Tensor, "U E"]:
    """Return the vectors of strings that the run has never seen."""
    config = run.recipe.encoders[[spec.name for spec in run.layout.strings].index(column)]
    encoder = trained_encoder(run, column)
    tokens = tokenize(load_tokenizer(config), texts, encoder.max_length).tokens
    return torch.from_numpy(encode_all(encoder, tokens))
