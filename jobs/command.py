"""What every job shares: exit codes, arguments, a config read from YAML and `--set`.

Exit codes: 0 done, 1 our defect (traceback), 2 the user's input (message alone).
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import yaml

from embedcache.errors import ConfigError, UserError


def run_job(main: Callable[[], None]) -> NoReturn:
    """Run a job's main and exit with its code; a UserError prints its message, without a
    traceback.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def config_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the two arguments that every configured job takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a YAML file such as configs/stage1.yaml"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override one value, e.g. --set train.epochs=3",
    )
    return parser


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return the nested mapping with every `a.b.c=value` set; values are read as YAML, list items
    are addressed by their index.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override}: expected KEY=VALUE, such as --set train.epochs=3")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from None
        _set_at(values, key.split("."), value, override)
    return values


def _set_at(values: Any, path: list[str], value: Any, override: str) -> None:
    """Set one value inside nested mappings and lists, creating mappings on the way."""
    for step in path[:-1]:
        values = (
            values.setdefault(step, {})
            if isinstance(values, dict)
            else _item(values, step, override)
        )
    if isinstance(values, dict):
        values[path[-1]] = value
    elif isinstance(values, list):
        _item(values, path[-1], override)
        values[int(path[-1])] = value
    else:
        raise ConfigError(
            f"--set {override}: '{'.'.join(path[:-1])}' holds a single value, not a mapping or list"
        )


def _item(values: Any, step: str, override: str) -> Any:
    """Return item `step` of a list, or explain what is wrong with asking for it."""
    if not isinstance(values, list) or not step.isdigit() or int(step) >= len(values):
        size = f"a list of {len(values)} items" if isinstance(values, list) else "a single value"
        raise ConfigError(f"--set {override}: '{step}' does not address an item of {size}")
    return values[int(step)]
