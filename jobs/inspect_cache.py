"""`python -m jobs.inspect_cache`: see `fusionnet.commands.inspect_cache`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.inspect_cache import main

if __name__ == "__main__":
    run_job(main)
