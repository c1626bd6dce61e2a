"""`python -m jobs.design`: see `fusionnet.commands.design`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.design import main

if __name__ == "__main__":
    run_job(main)
