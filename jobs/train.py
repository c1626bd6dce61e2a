"""`python -m jobs.train`: see `fusionnet.commands.train`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.train import main

if __name__ == "__main__":
    run_job(main)
