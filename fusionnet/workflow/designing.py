"""Search the designs of one patient, and write what was found: tables, a picture, plain words."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
import torch

from embedcache.errors import DesignError, OutputError
from embedcache.files import write_atomically
from embedcache.system import explained
from embedcache.table.cellkinds import typed
from embedcache.text import nearest
from embedcache.values import spelled
from fusionnet.design.candidates import Candidates, Pool, grid, sequence
from fusionnet.design.deriving import ROW, from_rows, patients, read_rows
from fusionnet.design.figure import front_figure
from fusionnet.design.objectives import Objective, objectives_of, weighted
from fusionnet.design.search import Judge, search
from fusionnet.design.space import FormulationSpace
from fusionnet.design.words import TITLE, Searched, described, of_table
from fusionnet.evaluation.figures import STYLE
from fusionnet.evaluation.plots import file_stem
from fusionnet.train.precision import multiplies_bf16
from fusionnet.trained.folder import Moment
from fusionnet.trained.formula import formula_of
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.rewards import check_pessimism
from fusionnet.trained.run import Precision, TrainedRun, load_run
from fusionnet.trained.sources import source_of

FILES = ("design.md", "top.csv", "front.csv", "design.png")
COVERAGE = 0.9


def check_not_foreign(out: Path) -> None:
    """Raise OutputError where files of these names lie in a folder that no search wrote."""
    there = [name for name in FILES if (out / name).exists()]
    text = out / FILES[0]
    is_own = text.is_file() and text.read_bytes().startswith(TITLE.encode())
    if there and not is_own:
        raise OutputError(
            f"{out} has {', '.join(there)}, which no search for designs wrote; name another folder"
            " with --out DIR"
        )


def out_folder(patient: str) -> Path:
    """Return the folder that results of a patient are written to if none is named."""
    return Path(file_stem(f"design_{patient}", taken=()))


@dataclass(frozen=True)
class DesignRequest:
    """What is to be searched for whom, and what is to be told."""

    patient: str
    table: Path | None = None  # None: the run's own
    patients: Path | None = None  # a table of contexts; None: those of the table
    num_candidates: int = 10_000_000
    num_levels: int | None = None  # of a grid, instead of so many candidates
    weights: Mapping[str, float] = field(default_factory=dict)
    pareto: Sequence[str] = ()
    num_top: int = 10
    distance: float = 0.5
    pessimism: float | None = None
    seed: int = 0


def design(
    folder: Path,
    request: DesignRequest,
    out: Path,
    checkpoint: Moment = "best",
    device: str = "cpu",
    precision: Precision | None = None,
    progress: bool = False,
) -> Searched:
    """Search the designs of a patient, write FILES into `out`, and return what was found.

    `precision` is that of the search (None: bf16 where the device multiplies it in hardware).
    Raises DesignError, ConfigError, TableError or RunError.
    """
    _check(request)
    model = _model(folder, request, checkpoint, device)
    rows = read_rows(model.run, request.table)
    space = from_rows(model.run, rows)
    context = _context(model.run, space, rows, request)
    candidates = (
        sequence(space, request.num_candidates, request.seed)
        if request.num_levels is None
        else grid(space, request.num_levels)
    )
    objectives = objectives_of(model.run, request.pareto)
    exact = _judge(model, candidates, context, objectives, request)
    fast = exact
    if precision == "bf16" or (precision is None and multiplies_bf16(torch.device(device))):
        rounded = _model(folder, request, checkpoint, device, "bf16")
        fast = _judge(rounded, candidates, context, objectives, request)
    started = time.perf_counter()
    again = exact if fast is not exact else None
    found = search(fast, again, request.distance, request.num_top, progress)
    seconds = time.perf_counter() - started
    top = _table(model, candidates, context, found.top, request)
    searched = Searched(
        run=model.run,
        table=str(request.table or model.run.data.title),
        patient=request.patient,
        candidates=candidates,
        objectives=objectives,
        formula=formula_of(model.run),
        pessimism=check_pessimism(model.run, request.pessimism),
        found=found,
        top=top,
        distance=request.distance,
        coverage=_coverage(model.run),
        rounded=fast is not exact,
        seconds=seconds,
    )
    front = _table(model, candidates, context, found.front, request)
    _write(out, described(searched), top, front, _picture(searched, exact))
    return searched


def _check(request: DesignRequest) -> None:
    """Raise DesignError for numbers that make no sense."""
    for flag, value, least in (
        ("--candidates", request.num_candidates, 1),
        ("--top", request.num_top, 1),
        ("--distance", request.distance, 0),
        ("--seed", request.seed, 0),
    ):
        if not least <= value < float("inf"):
            raise DesignError(f"{flag} must be a number from {least} on; got {value:g}")


def _model(
    folder: Path,
    request: DesignRequest,
    checkpoint: Moment,
    device: str,
    precision: Precision = "fp32",
) -> RewardModel:
    """Return the run with the weights that are asked for."""
    return RewardModel(weighted(load_run(folder, checkpoint, device, precision), request.weights))


def _context(
    run: TrainedRun, space: FormulationSpace, rows: pl.LazyFrame, request: DesignRequest
) -> pl.DataFrame:
    """Return the row of the patient that is asked for; raise DesignError where there is none."""
    name = space.group or ROW
    if request.patients is None:
        known, where = patients(space, rows), str(request.table or run.data.title)
    else:
        source = source_of(run, request.patients, "--patients")
        known = (typed(source) if source.is_csv else source.original).collect(engine="streaming")
        where = str(request.patients)
    if name == ROW and name not in known.columns:
        known = known.with_row_index(ROW)
    if name not in known.columns:
        raise DesignError(f"{where} has no column '{name}', which names patients")
    names = [spelled(each) for each in known[name].cast(pl.String).to_list() if each is not None]
    wanted = spelled(request.patient)
    if wanted not in names:
        raise DesignError(
            f"{where} has no {name} {request.patient!r:.80}{nearest(wanted, names)}; it has"
            f" {len(names):,}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}. Of a new"
            " patient, give what is fixed with --patients FILE"
        )
    given = known.filter(pl.Series([each == wanted for each in names]))
    if given.height > 1 and given.select(space.fixed).n_unique() > 1:
        raise DesignError(
            f"{where} has {given.height:,} rows of {name} {request.patient!r:.80} with different"
            " values of what is fixed; give one row"
        )
    space.context(given[:1])
    return given[:1]


def _judge(
    model: RewardModel,
    candidates: Candidates,
    context: pl.DataFrame,
    objectives: Sequence[Objective],
    request: DesignRequest,
) -> Judge:
    """Return the model as the judge of this patient's designs."""
    space = candidates.space
    texts = space.distinct
    rewarder = model.on_strings(texts, request.pessimism, unseen="allow")
    return Judge(candidates, space.context(context), objectives, rewarder)


def _coverage(run: TrainedRun) -> float | None:
    """Return the coverage of the intervals that the run has, None where it has none."""
    has_any = run.calibration is not None and bool(run.calibration.scores)
    return COVERAGE if has_any else None


def _table(
    model: RewardModel,
    candidates: Candidates,
    context: pl.DataFrame,
    pool: Pool,
    request: DesignRequest,
) -> pl.DataFrame:
    """Return designs as `predict` reads them, a row each, with all that the run says of them."""
    space = candidates.space
    designs = candidates.designs(pool.cell, pool.share)
    frame = space.frame(context, *designs)
    batches = model.batches(
        frame, reward=True, coverage=_coverage(model.run), pessimism=request.pessimism
    )
    said = pl.concat(batches)
    own = pl.DataFrame({"place": np.arange(1, frame.height + 1), "material": designs.material})
    if space.group is not None and space.group not in frame.columns:
        patient = context[space.group].cast(pl.String).new_from_index(0, frame.height)
        frame = frame.insert_column(0, patient)
    taken = {*own.columns, *said.columns}
    frame = frame.rename({name: of_table(name) for name in frame.columns if name in taken})
    return pl.concat([own, frame, said], how="horizontal")


def _picture(searched: Searched, judge: Judge) -> bytes:
    """Return the picture as PNG."""
    found, objectives = searched.found, searched.objectives
    sign = np.array([1 if each.more_is_better else -1 for each in objectives])
    top = judge(found.top.cell, found.top.share).objectives
    space = searched.candidates.space
    title = (
        f"Designs for {space.group or ROW} {searched.patient:.40}:"
        f" {found.num_rows:,} judged by {searched.run.name}"
    )
    with mpl.rc_context(STYLE):
        figure = front_figure(
            title,
            objectives,
            found.some.objectives * sign,
            found.front_objectives * sign,
            top * sign,
        )
        png = BytesIO()
        figure.savefig(png, format="png")
    return png.getvalue()


def _write(out: Path, text: str, top: pl.DataFrame, front: pl.DataFrame, png: bytes) -> None:
    """Write FILES; raise OutputError where they cannot be."""
    contents = (text.encode(), top.write_csv().encode(), front.write_csv().encode(), png)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in zip(FILES, contents, strict=True):
            write_atomically(out / name, content)
    except OSError as error:
        raise OutputError(explained(error)) from None
