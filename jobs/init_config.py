"""`python -m jobs.init_config`: see `fusionnet.commands.init_config`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.init_config import main

if __name__ == "__main__":
    run_job(main)
