"""`python -m jobs.cross_validate`: see `fusionnet.commands.cross_validate`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.cross_validate import main

if __name__ == "__main__":
    run_job(main)
