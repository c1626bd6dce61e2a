"""`<name>_proof.json`: what was recomputed of a run, how far off it was, and the same in words."""

from collections.abc import Collection, Sequence
from pathlib import Path

from pydantic import ValidationError

from embedcache.errors import RunError
from embedcache.files import write_atomically
from embedcache.schema import Config
from fusionnet.train.proof.comparison import Verdict

_LARGEST = 1e308  # stands for an error that is not finite, which JSON has no number for


class Judgement(Config):
    """Relative errors and their limits, by part of the model (see `comparison.Verdict`)."""

    errors: dict[str, float]
    limits: dict[str, float]
    plain: dict[str, float]
    not_judged: dict[str, float]


class Proof(Config):
    """One step that was recomputed."""

    step: int  # counted over the whole run from 0
    rows: int
    strings: tuple[int, ...]  # distinct ones, by string column
    rows_encoded_for_themselves: int  # of each rank
    rows_that_differ_from_the_cache: int
    precisions: dict[str, Judgement]
    passed: bool
    seconds: float


class Proofs(Config):
    """The proofs of a run: the steps that are due, and those that were proven."""

    due: tuple[int, ...]
    proofs: tuple[Proof, ...] = ()


class ProofFile:
    """The proofs of a run in training, written after each one once the folder is the run's."""

    def __init__(self, path: Path, due: Collection[int], resumed_at: int) -> None:
        """A run that goes on at step `resumed_at` keeps the proofs of the steps before it."""
        self._path, self._due = path, tuple(sorted(due))
        self._is_open = resumed_at > 0
        earlier = read_proofs(path) if resumed_at > 0 else []
        self.proofs = [proof for proof in earlier if proof.step < resumed_at]

    def append(self, proof: Proof) -> None:
        """Add one step's proof."""
        self.proofs.append(proof)
        if self._is_open:
            self.open()

    def open(self) -> None:
        """Write what was proven, and from now on after each proof."""
        self._is_open = True
        if not self.proofs:
            return
        content = Proofs(due=self._due, proofs=tuple(self.proofs))
        write_atomically(self._path, f"{content.model_dump_json(indent=1)}\n".encode())

    def line(self, trained_s: float) -> str:
        """Return what was proven in a line, and its share of a training of so many seconds."""
        if not self.proofs:
            return certificate([])
        seconds = sum(proof.seconds for proof in self.proofs)
        return f"{certificate(self.proofs)}; {seconds:.1f} s, {seconds / trained_s:.1%} of training"


def judgement(verdict: Verdict) -> Judgement:
    """Return a verdict as it is written."""
    finite = {
        field: {name: each if each <= _LARGEST else _LARGEST for name, each in values.items()}
        for field, values in verdict._asdict().items()
    }
    return Judgement(**finite)


def proof_path(folder: Path, name: str) -> Path:
    """Return where a run's proofs are."""
    return folder / f"{name}_proof.json"


def read_proofs(path: Path) -> Sequence[Proof]:
    """Return the proofs of a run, none where there is no file; raises RunError for another file."""
    if not path.is_file():
        return ()
    try:
        return Proofs.model_validate_json(path.read_bytes()).proofs
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RunError(
            f"{path} is not what training wrote ({first['msg']}); restore it, or delete it: the run"
            " is then shown without a certificate"
        ) from None


def certificate(proofs: Sequence[Proof]) -> str:
    """Return in words what was recomputed and how far it was off."""
    if not proofs:
        return "none: no step was recomputed row by row (train.prove)"
    worst: dict[str, tuple[float, float]] = {}  # by precision: an error and its limit
    for proof in proofs:
        for name, judged in proof.precisions.items():
            for part, error in judged.errors.items():
                worst[name] = max(worst.get(name, (-1.0, 0.0)), (error, judged.limits[part]))
    errors = ", ".join(
        f"{error:.1e} in {name} (at most {limit:.1e})" for name, (error, limit) in worst.items()
    )
    num_rows = sum(proof.rows for proof in proofs)
    steps = "1 step" if len(proofs) == 1 else f"{len(proofs)} steps"
    verdict = "proven" if all(proof.passed for proof in proofs) else "NOT PROVEN"
    return (
        f"{verdict}: gradients of {steps} recomputed row by row for {num_rows:,} rows, largest"
        f" relative error {errors}"
    )
