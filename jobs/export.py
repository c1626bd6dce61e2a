"""`python -m jobs.export`: see `fusionnet.commands.export`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.export import main

if __name__ == "__main__":
    run_job(main)
