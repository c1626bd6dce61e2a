"""`python -m jobs.make_encoder`: see `fusionnet.commands.make_encoder`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.make_encoder import main

if __name__ == "__main__":
    run_job(main)
