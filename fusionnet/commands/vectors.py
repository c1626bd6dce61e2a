"""Show, or delete, the vectors that outlive caches: `embedcache vectors [--delete]`.

They lie where `cache.vectors` says; nothing but the time to encode them again is lost with them.
"""

import argparse
import shlex
from pathlib import Path

from fusionnet.commands.command import run_job


def main() -> None:
    """Print where the vectors lie and how large they are, and delete them if that is asked for."""
    parser = argparse.ArgumentParser(
        description="Show, or delete, the vectors of strings that all builds share."
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="a folder that cache.vectors names (unset: that of cache.vectors: auto)",
    )
    parser.add_argument("--delete", action="store_true", help="delete them")
    arguments = parser.parse_args()
    from embedcache.build.store import emptied, summary_of  # after --help and wrong arguments
    from embedcache.config.cache import VECTORS, CacheConfig

    folder = arguments.folder or CacheConfig().vectors_folder
    if folder is None:
        print(f"no vectors are kept: {VECTORS} is off, or there is no home folder")
    elif arguments.delete:
        print(f"{folder}: {emptied(folder) / 1e6:,.1f} MB of vectors deleted")
    else:
        print(summary_of(folder))
        print(f"delete all with: embedcache vectors {shlex.quote(str(folder))} --delete")


if __name__ == "__main__":
    run_job(main)
