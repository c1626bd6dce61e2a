"""`python -m jobs.build_cache`: see `fusionnet.commands.build_cache`."""

from fusionnet.commands.build_cache import main
from fusionnet.commands.command import run_job

if __name__ == "__main__":
    run_job(main)
