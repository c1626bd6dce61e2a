"""The service under load: calls per second and their times, with and without answering together the
calls that come together.

Two servers, each a process with one thread of arithmetic, serve the specification's network (fresh
weights: speed does not depend on them). One joins the calls that arrive while its model works, as
`fusionnet serve` does; the other answers one after the other. They take turns in rounds; only the
one that is asked works. Each client sends its next call over the same connection when the last one
is answered, so 64 clients are 64 calls under way. The client is one process on the same machine.
Before anything is timed, the answers of both are compared with `RewardModel.predict`.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from benchmarks.harness.cells import Column, Table, number, times, with_spread
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import REPOSITORY, stamp
from benchmarks.harness.timing import interleaved, paired_ratio, spread
from benchmarks.studies.inference import prepare
from embedcache.errors import UserError
from fusionnet import RewardModel
from fusionnet.serving.address import open_socket, url_of
from fusionnet.serving.limits import Limits
from fusionnet.serving.server import serve

CLIENTS = (1, 16, 64)
ROWS = (1, 64)  # of one call
MODES = {"joined": Limits().batch_rows, "alone": 1}
CLOSE = 1e-5  # of a prediction's size, or absolute

COLUMNS = (
    Column("clients", "clients"),
    Column("rows per call", "rows"),
    Column("calls/s joined", "joined.calls_per_s", with_spread),
    Column("p50, ms", "joined.p50_ms", number),
    Column("p99, ms", "joined.p99_ms", number),
    Column("calls/s one by one", "alone.calls_per_s", with_spread),
    Column("p50, ms", "alone.p50_ms", number),
    Column("p99, ms", "alone.p99_ms", number),
    Column("joined : one by one", "ratio.median", times),
)


class Turn(NamedTuple):
    """What clients saw in one round."""

    num_calls: int
    elapsed_s: float  # until the last of them was answered
    latencies_s: list[float]


def main(words: list[str]) -> None:
    """Measure and write benchmarks/results/serve.*."""
    options = parser("serve", __doc__ or "")
    options.add_argument("--server", nargs=2, metavar=("RUN", "ROWS"), help=argparse.SUPPRESS)
    arguments = options.parse_args(words)
    if arguments.server:
        _serve(Path(arguments.server[0]), int(arguments.server[1]))
        return
    rounds, window_s = (1, 1.0) if arguments.quick else (5, 3.0)
    found: dict[str, Any] = {**stamp(), "quick": arguments.quick}
    found |= {"rounds": rounds, "window_s": window_s}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tell("now writing rows, their cache and a run folder")
        prepare(folder, rows_per_patient=24)
        frame = pl.read_parquet(folder / "cohort.parquet").head(64 * max(ROWS))
        found["pass_ms"] = passes(folder / "run", frame)
        with ExitStack() as stack:
            ports = {
                mode: stack.enter_context(server(folder / "run", batch_rows))
                for mode, batch_rows in MODES.items()
            }
            found["off"] = check(folder / "run", frame, ports)
            found["rows"] = measure(frame, ports, rounds, window_s)
    publish(output_path("serve", arguments), found, report)


def _serve(run: Path, batch_rows: int) -> None:
    """Be a server: print its address, and answer until told to stop."""
    listener = open_socket("127.0.0.1", 0)
    print(url_of(listener), flush=True)
    serve(run, listener, Limits(batch_rows=batch_rows), num_threads=1)


@contextmanager
def server(run: Path, batch_rows: int) -> Iterator[int]:
    """Run a server as a process, and yield its port when it is ready."""
    command = [sys.executable, "-m", "benchmarks", "serve", "--server", str(run), str(batch_rows)]
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert child.stdout is not None
            url, ready = child.stdout.readline(), child.stdout.readline()
            if "is served at" not in ready:
                log.seek(0)
                raise UserError(f"the server did not start:\n{log.read()[-3000:]}")
            yield int(url.rsplit(":", 1)[1])
        finally:
            child.terminate()
            child.communicate()


def passes(run: Path, frame: pl.DataFrame) -> dict[str, float]:
    """Return the milliseconds of `RewardModel.predict` by rows, on one thread, in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = RewardModel.load(run)
    found = {}
    for num_rows in (1, 64, 4096):
        rows = pl.concat([frame] * -(-num_rows // len(frame))).head(num_rows)
        model.predict(rows)
        seconds = []
        for _ in range(9):
            started = time.perf_counter()
            model.predict(rows)
            seconds.append(time.perf_counter() - started)
        found[str(num_rows)] = 1e3 * float(np.median(seconds))
    torch.set_num_threads(threads)
    return found


def check(run: Path, frame: pl.DataFrame, ports: dict[str, int]) -> float:
    """Return how far answers are from `RewardModel.predict`, at most; raises where that is far."""
    rows = frame.head(64)
    expected = RewardModel.load(run).predict(rows)
    bodies = [_request(rows.slice(start, 4)) for start in range(0, 64, 4)]
    off = 0.0
    for port in ports.values():
        answers = asyncio.run(_together(port, bodies))
        told_rows = [row for answer in answers for row in json.loads(answer)["rows"]]
        for name in [each for each in expected.columns if each.startswith("predicted")]:
            told, right = np.array([row[name] for row in told_rows]), expected[name].to_numpy()
            off = max(off, float(np.max(np.abs(told - right) / np.maximum(np.abs(right), 1))))
    if off > CLOSE:
        raise UserError(f"answers are {off:.2g} off from RewardModel.predict")
    return off


def measure(
    frame: pl.DataFrame, ports: dict[str, int], rounds: int, window_s: float
) -> list[dict[str, Any]]:
    """Return what clients saw of each server, by their number and the rows of a call."""
    found = []
    for num_rows in ROWS:
        bodies = [_request(frame.slice(start * num_rows, num_rows)) for start in range(64)]
        for clients in CLIENTS:
            tell(f"now measuring {clients} clients with {num_rows} rows")
            turns = {
                mode: partial(_turn, port, bodies[:clients], window_s)
                for mode, port in ports.items()
            }
            for port in ports.values():
                _turn(port, bodies[:clients], 0.0)  # one call each
            seen = interleaved(turns, rounds)
            found.append({"clients": clients, "rows": num_rows, **_summary(seen)})
    return found


def _summary(seen: dict[str, list[Turn]]) -> dict[str, Any]:
    """Return rates with their spread over rounds, and times of all calls of all rounds."""
    rates = {mode: [turn.num_calls / turn.elapsed_s for turn in own] for mode, own in seen.items()}
    summary: dict[str, Any] = {
        "ratio": paired_ratio(rates["joined"], rates["alone"]),
    }
    for mode, own in seen.items():
        latencies = [each for turn in own for each in turn.latencies_s]
        p50, p99 = np.percentile(latencies, [50, 99])
        summary[mode] = {
            "calls_per_s": spread(rates[mode]),
            "p50_ms": 1e3 * float(p50),
            "p99_ms": 1e3 * float(p99),
            "num_calls": len(latencies),
        }
    return summary


def _request(rows: pl.DataFrame) -> bytes:
    """Return a call as it goes over the wire."""
    body = f'{{"rows": {rows.write_json()}}}'.encode()
    head = (
        "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _turn(port: int, requests: Sequence[bytes], window_s: float) -> Turn:
    """Return what one client per request saw, each repeating its own."""
    return asyncio.run(_clients(port, requests, window_s))


async def _clients(port: int, requests: Sequence[bytes], window_s: float) -> Turn:
    latencies: list[float] = []
    started = time.perf_counter()

    async def client(request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            sent = time.perf_counter()
            await _answer(reader, writer, request)
            latencies.append(time.perf_counter() - sent)
            if time.perf_counter() - started > window_s:
                writer.close()
                return

    await asyncio.gather(*map(client, requests))
    return Turn(len(latencies), time.perf_counter() - started, latencies)


async def _together(port: int, requests: Sequence[bytes]) -> list[bytes]:
    """Return the answers of calls that are sent at once."""

    async def call(request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer = await _answer(reader, writer, request)
        writer.close()
        return answer

    return list(await asyncio.gather(*map(call, requests)))


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> bytes:
    """Return the body of a call's answer; raises UserError for another status than 200."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length:")[1].split("\r\n")[0])
    body = await reader.readexactly(length)
    if not head.startswith("http/1.1 200"):
        raise UserError(f"the service answered {head.splitlines()[0]}: {body[:300]!r}")
    return body


def report(found: dict[str, Any]) -> Report:
    """Return what is to be read and seen."""
    rows: Sequence[dict[str, Any]] = found["rows"]
    passed = found["pass_ms"]
    remarks = (
        f"{found['rounds']} rounds of {found['window_s']:g} s per server; calls per second are"
        " medians of rounds (20 to 80 %), ratios taken within rounds, times of all calls.",
        "Client and both servers share the machine, which had other work at the time: look at the"
        " ratios.",
    )
    text = (
        "`RewardModel.predict` alone, in the client's process before the servers start, takes"
        f" {number(passed['1'])} ms for 1 row, {number(passed['64'])} for 64 and"
        f" {number(passed['4096'])} for 4,096: what a pass costs whatever it holds is what calls"
        f" share. Answers are within {found['off']:.1g} of it."
    )
    panels = [
        Panel(
            f"calls of {num_rows} row{'s' if num_rows > 1 else ''}",
            "calls per second",
            {
                f"{row['clients']} {'client' if row['clients'] == 1 else 'clients'}, {name}": row[
                    mode
                ]["calls_per_s"]["median"]
                for row in rows
                if row["rows"] == num_rows
                for mode, name in (("joined", "joined"), ("alone", "one by one"))
            },
            ours=[f"{c} {'client' if c == 1 else 'clients'}, joined" for c in CLIENTS],
        )
        for num_rows in ROWS
    ]
    return Report(
        "The service under load, calls answered together and one by one",
        remarks,
        (Table(COLUMNS, rows), text),
        panels,
    )
