"""`python -m jobs.serve`: see `fusionnet.commands.serve`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.serve import main

if __name__ == "__main__":
    run_job(main)
