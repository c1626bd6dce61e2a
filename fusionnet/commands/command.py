"""What every job shares: exit codes, arguments, a config read from YAML and `--set`.

Exit codes: 0 done, 1 our defect (traceback), 2 the user's input (message alone).
"""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from embedcache.errors import UserError


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
