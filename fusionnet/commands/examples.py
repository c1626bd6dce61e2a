"""Copy the example configs and launch scripts into a folder, to start one's own from."""

import argparse
import shutil
from importlib import resources
from pathlib import Path

from embedcache.errors import UserError
from embedcache.files import atomic_write
from fusionnet.commands.command import run_job


def main() -> None:
    """Copy the examples; files that are there already are refused, never replaced."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("configs"), metavar="DIR", help="unset: configs"
    )
    folder = parser.parse_args().out
    source = examples_folder()
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix != ".txt")
    there = [file for file in files if (folder / file.relative_to(source)).exists()]
    if there:
        names = ", ".join(str(folder / file.relative_to(source)) for file in there[:3])
        raise UserError(f"{names} exist already; choose another folder with --out")
    targets = [folder / file.relative_to(source) for file in files]
    try:
        for file, target in zip(files, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as partial:
                shutil.copyfile(file, partial)
    except OSError:
        for target in targets:  # some would be refused as there already, at the next try
            target.unlink(missing_ok=True)
        raise
    print("\n".join(map(str, targets)))


def examples_folder() -> Path:
    """Return the folder of the examples: in a wheel beside the code, in a checkout its configs/."""
    installed = Path(str(resources.files("fusionnet"))) / "configs"
    checkout = Path(str(resources.files("fusionnet"))).parent / "configs"
    for folder in (installed, checkout):
        if (folder / "stage1.yaml").is_file():
            return folder
    raise UserError("the example configs are not part of this installation; see the repository")


if __name__ == "__main__":
    run_job(main)
