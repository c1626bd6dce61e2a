"""Read every byte of a cache and compare it with what was written.

Exit code 0: the cache is whole. Exit code 2: it is not; the message names the arrays and chunks.
"""

import argparse
from pathlib import Path

from fusionnet.commands.command import run_job


def main() -> None:
    """Verify the cache that the arguments name."""
    parser = argparse.ArgumentParser(description="Check every file of a cache against its digest.")
    parser.add_argument("cache", type=Path, help="a cache folder, such as cache.zarr")
    path = parser.parse_args().cache
    from embedcache.cache.reader import open_cache  # after --help and wrong arguments

    cache = open_cache(path)
    cache.verify()
    print(
        f"{cache.path} is whole: {cache.num_files} files, {cache.num_bytes / 1e6:,.1f} MB, identity"
        f" {cache.identity.short}"
    )


if __name__ == "__main__":
    run_job(main)
