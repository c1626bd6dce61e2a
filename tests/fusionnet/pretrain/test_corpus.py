"""`make_corpus`: valid, canonical, distinct, the same for one seed, and whole or not there."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deaths import run_until

from embedcache.errors import CorpusError
from embedcache.table.psmiles import prepare_string
from fusionnet.commands import cli
from fusionnet.commands.command import run_job
from fusionnet.pretrain.corpus import make_corpus
from fusionnet.pretrain.fragments import fragments_of, partners, pool_of
from fusionnet.pretrain.lines import Polymers, lines_of, lines_to, polymers_of_files
from fusionnet.pretrain.recombine import CANONICAL, grow
from fusionnet.pretrain.seen import Seen

KNOWN = [
    "[*]CC([*])C(=O)OCc1ccccc1",
    "[*]CC([*])c1ccc(OC)cc1",
    "[*]Oc1ccc(C(=O)Nc2ccc(C(C)(C)[*])cc2)cc1",
    "[*]NC(=O)CCCCC(=O)NCCCCCC[*]",
    "[*]c1ccc(C(C)(C)c2ccc([*])s2)cc1",
    "[*]/C=C/c1ccc([*])cc1",
    "[*]CC([*])C(=O)N(C)C",
]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Polymers:
    file = tmp_path_factory.mktemp("known") / "known.smi"
    file.write_text("\n".join([*KNOWN, "", " *CC(*)c1ccc(OC)cc1 "]) + "\n")
    return polymers_of_files([file], processes=1)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int | str | None]:
    def command(*arguments: object) -> int | str | None:
        monkeypatch.setattr("sys.argv", ["fusionnet", "make-corpus", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run_job(cli.fusionnet)
        return stopped.value.code

    return command


def test_spellings_of_one_chain_are_one_known_polymer(known: Polymers) -> None:
    assert known.num_lines == len(KNOWN) + 1
    assert len(known.strings) == len(KNOWN)
    assert known.strings == tuple(sorted(known.strings))


@pytest.mark.slow
def test_every_string_is_valid_canonical_new_and_comes_once(
    known: Polymers, tmp_path: Path
) -> None:
    made = make_corpus(known, tmp_path / "corpus.txt", 60, seed=3, processes=1, longest=60)
    strings = list(lines_of(tmp_path / "corpus.txt"))
    assert made.num_strings == len(strings) == len(set(strings)) == 60
    for text in strings:
        assert prepare_string(text, CANONICAL) == text  # two endpoints, and the chain's own form
        assert len(text) <= 60
    assert not set(strings) & set(known.strings)


@pytest.mark.slow
def test_a_seed_has_one_file_however_many_processes_write_it(
    known: Polymers, tmp_path: Path
) -> None:
    for name, seed, processes in (("a", 3, 1), ("b", 3, 2), ("c", 4, 1)):
        make_corpus(known, tmp_path / f"{name}.txt.gz", 100, seed, processes)
    one, two, other = ((tmp_path / f"{name}.txt.gz").read_bytes() for name in "abc")
    assert one == two != other
    more = tmp_path / "more.txt"
    make_corpus(known, more, 150, 3, processes=1)  # the first of more are those of fewer
    assert list(lines_of(more))[:100] == gzip.decompress(one).decode().splitlines()


def test_a_bond_that_is_cut_can_be_made_again() -> None:
    pool = pool_of([fragments_of(text) for text in KNOWN])
    whole = fragments_of("[*]CC([*])C(=O)OCc1ccccc1")
    assert whole == ("*CC(*)C([1*])=O", "[16*]c1ccccc1", "[3*]O[3*]", "[4*]C[8*]")
    assert all(label in partners()[other] for label in partners() for other in partners()[label])
    acyl = [fragment.smiles for fragment in pool.fragments].index("*CC(*)C([1*])=O")
    ether = [fragment.smiles for fragment in pool.fragments].index("[3*]O[3*]")
    assert pool.fits[3][acyl]
    assert pool.fits[1][ether]
    assert not pool.fits[3][ether]  # no peroxides


def test_what_grows_has_two_endpoints() -> None:
    pool = pool_of([fragments_of(text) for text in KNOWN])
    rng = np.random.default_rng(0)
    grown = [text for _ in range(200) if (text := grow(pool, rng)) is not None]
    assert len(grown) > 150
    assert {text.count("[*]") for text in grown} == {2}
    assert not any(mark in text for text in grown for mark in ".@/\\")


def test_stars_of_a_fragment_are_counted() -> None:
    pool = pool_of([["*C[8*]", "*C[8*]", "[1*]C(=O)[6*]", "*CC*", "c1ccccc1"]])
    assert [fragment.smiles for fragment in pool.fragments] == ["*C[8*]", "[1*]C(=O)[6*]"]
    assert pool.num_endpoints.tolist() == [1, 0]
    assert pool.num_open.tolist() == [1, 2]
    assert pool.weight.tolist() == [2**0.5, 1]


def test_what_was_seen_is_a_set() -> None:
    seen, plain = Seen(), set()
    texts = [f"{number * number % 9973}" for number in range(30_000)]
    for text in texts:
        assert seen.add(text) == (text not in plain)
        plain.add(text)
    assert len(seen) == len(plain)


@pytest.mark.slow
def test_a_kill_while_it_writes_leaves_the_old_file_or_the_new(
    known: Polymers, tmp_path: Path
) -> None:
    out = tmp_path / "corpus.txt"
    out.write_text("old\n")
    expected = tmp_path / "expected.txt"
    make_corpus(known, expected, 10, 0, processes=1)
    number, died = 0, True
    while died:
        died = run_until(lambda: make_corpus(known, out, 10, 0, 1) and None, number)
        assert out.read_text() in ("old\n", expected.read_text()) if died else True
        number += 1
    assert out.read_text() == expected.read_text()
    assert number > 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_error_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lines_to(tmp_path / "a.txt") as stream:
        stream.write(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_more_than_there_are_is_an_error_that_says_how_many(
    known: Polymers, tmp_path: Path
) -> None:
    few = Polymers(known.strings[:2], 2, 0)
    with pytest.raises(CorpusError, match=r"only [0-9]+ of 100,000 polymers could be made"):
        make_corpus(few, tmp_path / "corpus.txt", 100_000, 0, processes=1, longest=30)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_used_is_refused_by_name(
    tmp_path: Path, run: Callable[..., int | str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "known.txt", tmp_path / "corpus.txt"

    def refusal(*arguments: object) -> str:
        plain = ("--polymers", file, "--out", out, "--number", 10, "--processes", 1)
        assert run(*plain, *arguments) == 2
        assert not out.exists()
        return capsys.readouterr().err

    assert "there is no file" in refusal()
    file.write_text("\n")
    assert "there is no polymer in" in refusal()
    file.write_text("*CC*\n\nCCO,7\n*CC\n")
    assert "2 lines of 3 cannot be read" in (told := refusal())
    assert "line 3: CCO,7 is not valid SMILES syntax" in told
    assert "line 4: *CC has 1 endpoint" in told
    assert "too few to make new polymers of" in refusal("--skip-invalid")
    file.write_bytes(b"*CC*\n\xff\xfe\n")
    assert "is no UTF-8 text" in refusal()
    assert ".txt.gz" in refusal("--out", tmp_path / "corpus.csv")
    assert "--number" in refusal("--number", 0)
    assert "--seed" in refusal("--seed", -1)
    packed = tmp_path / "known.txt.gz"
    packed.write_bytes(gzip.compress(b"*CC*\n" * 99)[:-9])
    assert "is damaged" in refusal("--polymers", packed)


@pytest.mark.slow
def test_the_command_says_what_it_made(
    tmp_path: Path, run: Callable[..., int | str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "known.txt", tmp_path / "corpus.txt"
    file.write_text("\n".join(KNOWN))
    flags = ("--polymers", file, "--out", out, "--number", 20, "--processes", 1)
    assert run(*flags) == 0
    told = capsys.readouterr().out
    assert "20 polymers of" in told
    assert "strings/s" in told
    assert len(out.read_text().splitlines()) == 20
