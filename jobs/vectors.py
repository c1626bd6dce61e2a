"""`python -m jobs.vectors`: see `fusionnet.commands.vectors`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.vectors import main

if __name__ == "__main__":
    run_job(main)
