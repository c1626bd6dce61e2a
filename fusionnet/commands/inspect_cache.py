"""Show what a cache holds: `python -m jobs.inspect_cache cache.zarr [--json]`."""

import argparse
import json
from pathlib import Path

from fusionnet.commands.command import run_job


def main() -> None:
    """Print a summary of the cache that the arguments name."""
    parser = argparse.ArgumentParser(
        description="Show what a cache holds and what it was built from."
    )
    parser.add_argument("cache", type=Path, help="a cache folder, such as cache.zarr")
    parser.add_argument("--json", action="store_true", help="everything, for scripts")
    arguments = parser.parse_args()
    from embedcache.cache.reader import open_cache  # after --help and wrong arguments
    from fusionnet.workflow.inspecting import as_json, as_text

    cache = open_cache(arguments.cache)
    print(json.dumps(as_json(cache), indent=2) if arguments.json else as_text(cache))


if __name__ == "__main__":
    run_job(main)
