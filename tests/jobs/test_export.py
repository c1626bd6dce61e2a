"""`fusionnet export` says what it wrote, and refuses what is in the way."""

from collections.abc import Callable
from pathlib import Path

from fusionnet import RewardModel
from fusionnet.commands.export import main


def test_it_says_what_it_wrote_and_replaces_nothing(
    made_run: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    words = ("--to", "safetensors", "--out", tmp_path / "out")
    code, out, error = call(main, "--run", made_run, *words)
    assert (code, error) == (0, "")
    assert out.startswith(f"{tmp_path / 'out'}: the model as safetensors and JSON, ")
    assert RewardModel.load(tmp_path / "out").run.run_id == RewardModel.load(made_run).run.run_id
    code, out, error = call(main, "--run", made_run, *words)
    assert (code, out) == (2, "")
    assert "is there already; export into a new folder" in error
    code, _, error = call(main, "--run", tmp_path, *words)
    assert code == 2
    assert "is not a run folder" in error
    assert call(main, "--run", tmp_path / "out", "--to", "gguf", "--out", tmp_path / "x")[0] == 2


def test_a_program_lies_beside_what_describes_it(
    made_run: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "out"
    code, said, error = call(main, "--run", made_run, "--to", "torch", "--out", out)
    assert (code, error) == (0, "")
    assert said.startswith(f"{out}: the network as a program of torch.export, and model.json, ")
    assert {path.name for path in out.iterdir()} == {"model.pt2", "model.json"}
    words = ("--to", "safetensors", "--out", tmp_path / "other", "--without-trees")
    code, _, error = call(main, "--run", made_run, *words)
    assert code == 2
    assert "--without-trees is for onnx and torch" in error
