"""`python -m jobs.verify_cache`: see `fusionnet.commands.verify_cache`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.verify_cache import main

if __name__ == "__main__":
    run_job(main)
