"""YAML as people write it here: mappings, lists, text, numbers, yes and no, nothing else.

PyYAML's safe loader runs no code, but it takes the last of two equal keys in silence, lets 350
bytes of nested aliases stand for ten million values, and answers a depth of a thousand, a month 99
or an integer of 5,000 digits with an exception of Python's own. Here all of that is one ConfigError
that says where. A date is text, since no key is one; so are 1:30 and 010, which YAML 1.1 takes for
90 and 8.
"""

import codecs
import re
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.events import AliasEvent, NodeEvent

from embedcache.errors import ConfigError

MOST_BYTES = 10_000_000  # a table was named where a config is meant
MOST_DEPTH = 32  # the deepest key of ours is at 6
MOST_REPEATED = 10_000  # values that aliases stand for
MOST_DIGITS = 400  # a float has less
_UNREAD = {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}
_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _UNREAD]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_NO_NUMBER = re.compile(r"[-+]?0[0-9_]+|.*:.*")  # octal and sexagesimal, which nobody means


def read_yaml(file: Path) -> Any:
    """Return what a YAML file in UTF-8 holds (a byte order mark is read over).

    Raises ConfigError where the file cannot be read or is not YAML as it is read here.
    """
    try:
        if file.is_dir():
            raise ConfigError(f"{shown(file)} is a folder, not a config file; name a file in it")
        if not file.is_file():
            raise ConfigError(
                f"there is no config file {shown(file)}; `fusionnet examples` writes some to start"
                " from"
            )
        if file.stat().st_size > MOST_BYTES:
            raise ConfigError(
                f"{shown(file)} has {file.stat().st_size / 1e6:,.0f} MB, a config has a few KB; is"
                " it a table?"
            )
        content = file.read_bytes()
    except (OSError, ValueError) as error:  # a name that is too long, a file that may not be read
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{shown(file)} cannot be read: {reason}") from None
    return parse_yaml(_decoded(content, file), shown(file))


def parse_yaml(text: str, origin: str) -> Any:
    """Return the value that a YAML text holds; `origin` says in messages where it stands.

    No two places share one object: what an alias repeats is copied.
    """
    try:
        loader = _Loader(text, origin)
        node = loader.get_single_node()
        if loader.twice:
            lines = "\n".join(f"  - {line}" for line in loader.twice)
            raise ConfigError(
                f"{origin} has keys that are there twice, of which YAML would drop the first; keep"
                f" one of each:\n{lines}"
            )
        return None if node is None else _copied(loader.construct_document(node))
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}{_advice(error)}") from None


def _advice(error: yaml.YAMLError) -> str:
    """Return what is to be done about a tab, which YAML calls a character that starts no token, and
    about the backslashes of Windows' paths.
    """
    problem = getattr(error, "problem", None) or ""
    if "unknown escape character" in problem:
        return "\nin double quotes YAML reads a backslash as an escape; write '...' or / instead"
    return "\nYAML allows no tab there; indent with blanks" if "\\t" in problem else ""


def to_yaml(values: dict[str, Any]) -> str:
    """Return a mapping as the YAML that `parse_yaml` reads back unchanged."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def shown(text: object, most: int = 200) -> str:
    """Return text that a user gave, cut where it would fill the screen."""
    whole = str(text)
    return whole if len(whole) <= most else f"{whole[:most]}... ({len(whole):,} characters)"


def _decoded(content: bytes, file: Path) -> str:
    """Return a file's text, or raise ConfigError naming the first byte that is not UTF-8."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(f"{shown(file)} is written in UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{shown(file)} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}; save it"
            " as UTF-8"
        ) from None


def _copied(value: Any) -> Any:
    """Return a copy in which no two places share a list or mapping."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


class _Loader(yaml.SafeLoader):
    """Plain values alone; collects the keys that are there twice in `twice`."""

    yaml_implicit_resolvers = _RESOLVERS

    def __init__(self, text: str, origin: str) -> None:
        super().__init__(text)
        self.name = origin  # in messages
        self.twice: list[str] = []
        self._depth = 0
        self._repeated = 0
        # by node that is complete: the values in it, those of its aliases counted each time
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node, within the limits of depth and of what aliases stand for."""
        event = self.peek_event()
        if self.check_event(AliasEvent):
            node = super().compose_node(parent, index)
            if node not in self._sizes:
                raise _refused(f"'*{event.anchor}' stands inside of what it stands for", event)
            self._repeated += self._sizes[node]
            if self._repeated > MOST_REPEATED:
                raise _refused(
                    f"its aliases stand for more than {MOST_REPEATED:,} values; write them out",
                    event,
                )
            return node
        if event.tag not in (None, "!"):
            raise _refused(f"tags such as {event.tag} are not read; quote what is text", event)
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _refused(f"it is nested deeper than {MOST_DEPTH} levels", event)
        node = super().compose_node(parent, index)
        assert node is not None
        self._depth -= 1
        self._sizes[node] = 1 + sum(self._sizes[child] for child in _children(node))
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Return a node's tag; a number of base 8 or 60 is text."""
        tag = super().resolve(kind, value, implicit)
        return _TEXT if tag in _NUMBERS and _NO_NUMBER.fullmatch(value) else tag

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return the next mapping, having noted the keys that it has twice."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    self.twice.append(f"{shown(key.value, 80)}: line {lines[name]}, line {line}")
                lines.setdefault(name, line)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return a node's value; a number that Python cannot make is refused with its place."""
        if node.tag in _NUMBERS and len(node.value) > MOST_DIGITS:
            raise _refused(f"a number of {len(node.value):,} characters", node)
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode()  # "\\ud800" is no character, and no file can hold it
        except ValueError as error:  # such as 0x_
            raise _refused(str(error), node) from None
        return value


def _children(node: yaml.Node) -> list[yaml.Node]:
    """Return the keys and values of a mapping, the items of a list."""
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refused(why: str, place: NodeEvent | yaml.Node) -> yaml.MarkedYAMLError:
    """Return the error that says why the loader refuses what begins at a place."""
    return yaml.MarkedYAMLError(problem=why, problem_mark=cast(yaml.Mark, place.start_mark))


class _Dumper(yaml.SafeDumper):
    """PyYAML's, but for the line breaks that it writes as they are and reads back as blanks."""


def _represented(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Return a text's node, quoted and escaped where YAML takes a character for a line break."""
    breaks = not set(text).isdisjoint("\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if breaks else None)


_Dumper.add_representer(str, _represented)
