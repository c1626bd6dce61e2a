"""What people's YAML files hold is read, or refused by one message: never half of it, never a
traceback, never minutes.
"""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st

from embedcache.errors import ConfigError
from fusionnet.experiment import load_experiment
from fusionnet.yamlfile import MOST_BYTES, parse_yaml, read_yaml, to_yaml

GOOD = b"""
data: {path: t.csv, strings: [{name: p, column: s}], group: g}
tasks: [{name: ef, column: y}]
"""


def brief(value: object) -> str:
    """Return a short id of a case."""
    return ascii(value)[:30]


def bomb(depth: int) -> str:
    """Return a list of ten aliases of a list of ten aliases, and so on."""
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth)]
    return "\n".join([f"a0: &a0 [{', '.join('x' * 10)}]", *levels])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: {epochs: 1}\nrun: {}\ntrain: {}", r"twice.*\n  - train: line 1, line 3"),
        ("a:\n- b:\n    c: 1\n    d: 2\n    c: 3", r"\n  - c: line 3, line 5"),
        ("{a: 1, b: {c: 1, c: 1}, a: 2}", r"\n  - c: line 1, line 1\n  - a: line 1, line 1"),
        ("'a': 1\na: 2", "a: line 1, line 2"),
        (bomb(7), "aliases stand for more than 10,000 values"),
        ("a: &a [*a]", r"'\*a' stands inside of what it stands for"),
        ("a: *b", "undefined alias"),
        ("[" * 3000, "nested deeper than 32 levels"),
        ("{a: " * 3000, "nested deeper than 32 levels"),
        ("a: " + "9" * 5000, "a number of 5,000 characters"),
        ("a: 0x_", "invalid literal"),
        ("a: !!int x", "tags such as tag:yaml.org,2002:int are not read"),
        ("a: !!python/object/apply:os.system [ls]", "tags such as .*os.system are not read"),
        ("? [a]\n: 2", "unhashable key"),
        ('a: "\\ud800"', "surrogates not allowed"),
        ("a: 1\n---\na: 2", "another document"),
        ("a: [1", "not valid YAML"),
        ("a: \x07", "special characters are not allowed"),
        (
            "note: caf\u00e9".encode("latin-1"),
            "is not UTF-8: byte 0xe9 in line 1; save it as UTF-8",
        ),
        (b"a: 1\n\xff", "is not UTF-8: byte 0xff in line 2"),
        ("a: 1".encode("utf-16"), "is written in UTF-16; save it as UTF-8"),
        (bytes(range(256)), "is not UTF-8"),
        (b"#" * (MOST_BYTES + 1), "has 10 MB, a config has a few KB; is it a table?"),
    ],
    ids=brief,
)
def test_what_is_not_read_is_refused_at_once(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    started = time.process_time()
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml(file)
    assert time.process_time() - started < 1  # s; the alias bomb took 20
    assert "c.yaml" in str(error.value)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.yaml", "there is no config file none.yaml; `fusionnet examples`"),
        (".", "is a folder, not a config file"),
        ("a\0b", "there is no config file"),
        ("x" * 5000, r"x\.\.\. \(5,000 characters\) cannot be read: File name too long"),
    ],
    ids=brief,
)
def test_a_name_that_names_no_file(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(Path(name))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\ufeffa: 1", {"a": 1}),
        ("", None),
        ("a: 2020-99-99", {"a": "2020-99-99"}),  # no key is a date
        ("a: =", {"a": "="}),
        ("x: &x {e: 3}\ny: {<<: *x, f: 4}\nz: {<<: *x, e: 5}", None),
        ("! a", "a"),
    ],
)
def test_what_is_read(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(tmp_path / "c.yaml") == (value if text[:1] != "x" else yaml.safe_load(text))


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@examples(2)
@given(
    st.recursive(
        PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
    )
)
def test_what_yaml_writes_is_read_back(value: Any) -> None:
    assert parse_yaml(to_yaml({"it": value}), "it") == {"it": value}


def test_a_rare_line_break_stays_what_it_is() -> None:
    value = {"run": "a\x85b\u2028c\u2029 \xb5m"}
    assert parse_yaml(to_yaml(value), "it") == value
    assert "\xb5m" in to_yaml(value)


def test_what_an_alias_repeats_is_not_shared() -> None:
    read = parse_yaml("a: &a {b: [1]}\nc: *a", "it")
    read["a"]["b"].append(2)
    assert read == {"a": {"b": [1, 2]}, "c": {"b": [1]}}


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("c.yaml", r"extend each other in a circle \(.*c\.yaml extends .*c\.yaml\)"),
        ("./c.yaml", "in a circle"),
        ("other.yaml", r"in a circle \(.*c\.yaml extends .*other\.yaml extends .*link\.yaml\)"),
        ("$NOT_SET/b.yaml", r"extends names the environment variable NOT_SET"),
        ("none.yaml", r"no config file .*none\.yaml.*\(.*c\.yaml extends .*none\.yaml\)"),
        ("twice.yaml", r"(?s)twice\.yaml has keys .*line 2 \(.*c\.yaml extends .*twice\.yaml"),
        ("number.yaml", r"number\.yaml must hold a mapping .*c\.yaml extends"),
        ("x" * 5000, "extends is longer than 3,000 bytes"),
        ('"a\\0b"', "extends has a NUL character"),
        (".", "is a folder, not a config file"),
        ("~nobody-here/c.yaml", "extends begins with ~nobody-here, which is nobody's home"),
        *[(value, "extends must name one YAML file") for value in ("5", "[a]", "{}", "true", "")],
    ],
    ids=brief,
)
def test_a_file_that_extends_what_it_cannot(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(f"extends: {base}\n")
    (tmp_path / "link.yaml").symlink_to("c.yaml")
    (tmp_path / "other.yaml").write_text("extends: link.yaml\n")
    (tmp_path / "twice.yaml").write_text("a: 1\na: 2")
    (tmp_path / "number.yaml").write_text("5")
    with pytest.raises(ConfigError, match=message):
        load_experiment(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.\u00b2=x", "'\u00b2' does not address an item of a list; its items are 0 to 0"),
        ("tasks.-1=x", "'-1' does not address"),
        (f"tasks.{'9' * 5000}=x", "does not address"),
        ("tasks.0.name.x=1", "what 'x' is to be in is 'ef'"),
        ("train..epochs=1", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        (f"{'.'.join('a' * 5000)}=1", "no key is 5000 levels deep"),
        ("train.epochs=1:30", r"train\.epochs: .*integer.*'1:30'"),
        ("tasks.0.name=no", r"tasks\.0\.name: .*text; quote it"),
        ("tasks.0.name=[", "--set .* is not valid YAML"),
        ("train={epochs: 1, epochs: 2}", "--set .* twice"),
        ("split.seed=" + "9" * 5000, "a number of 5,000 characters"),
        ("x" * 5000 + "=1", "x: unknown key"),
        (
            "train.epochs=" + "[1, " * 30 + "]" * 30,
            r"train\.epochs: .*\(got \[1, \[1, \[\.\.\.\]\]\]\)",
        ),
    ],
)
def test_an_override_that_cannot_be_applied(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "c.yaml").write_bytes(GOOD)
    with pytest.raises(ConfigError, match=message) as error:
        load_experiment(tmp_path / "c.yaml", [override])
    assert len(str(error.value)) < 2000


def test_one_mistake_has_no_follow_up(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(GOOD.replace(b"column: y", b"columm: y"))
    with pytest.raises(ConfigError) as error:
        load_experiment(tmp_path / "c.yaml")
    lines = str(error.value).splitlines()[1:]
    assert lines == [
        "  - tasks.0.column: is required; the table's column, of numbers or booleans; of classes"
        " also text",
        "  - tasks.0.columm: unknown key; did you mean 'column'?",
    ]


def test_numbers_of_base_60_and_8_are_text() -> None:
    read = parse_yaml("{a: 1:30, b: 12:30:45, c: 1:30.5, d: 010, e: -07, f: 0, g: 0.5, h: 10}", "c")
    assert read == {
        **{"a": "1:30", "b": "12:30:45", "c": "1:30.5", "d": "010", "e": "-07"},
        **{"f": 0, "g": 0.5, "h": 10},
    }
    assert parse_yaml(to_yaml(read), "c") == read


def test_a_tab_is_called_one() -> None:
    with pytest.raises(ConfigError, match=r"line 2, column 1(.|\n)*no tab there"):
        parse_yaml("train:\n\tepochs: 3", "c")


@pytest.mark.parametrize("sign", [",", "|", ":", "\t", ";"])
def test_a_sign_of_csv_files_needs_no_quotes_on_the_command_line(tmp_path: Path, sign: str) -> None:
    (tmp_path / "c.yaml").write_bytes(GOOD)
    found = load_experiment(tmp_path / "c.yaml", [f"data.csv.separator={sign}"])
    assert found.data.csv.separator == sign


def test_numbers_and_null_may_name_cells_without_quotes(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(GOOD)
    kind = "data.categories=[{column: kind, values: [1, 2.50, a], if_null: 0, other: 007}]"
    found = load_experiment(tmp_path / "c.yaml", [kind, "data.null_values=[NA, -999, null]"]).data
    assert found.null_values == ("NA", "-999", "null")
    assert found.categories[0].values == ("1", "2.5", "a")
    assert (found.categories[0].if_null, found.categories[0].other) == ("0", "7")


def test_a_bare_no_is_one_line_that_says_to_quote_it(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(GOOD)
    with pytest.raises(ConfigError) as error:
        load_experiment(tmp_path / "c.yaml", ["data.categories=[{column: kind, values: [a, no]}]"])
    (line,) = str(error.value).splitlines()[1:]
    assert "values.1" in line
    assert "quote it" in line
