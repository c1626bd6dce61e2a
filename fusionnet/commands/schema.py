"""Print the JSON Schema of a config file, for editors: fusionnet schema > fusionnet.schema.json

In a config, the line `# yaml-language-server: $schema=fusionnet.schema.json` then lets VS Code's
YAML extension, Neovim and others complete its keys, explain them and mark what is wrong.
"""

import argparse

from fusionnet.commands.command import run_job
from fusionnet.workflow.schema import schema_text


def main() -> None:
    """Print it."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(schema_text(), end="")


if __name__ == "__main__":
    run_job(main)
