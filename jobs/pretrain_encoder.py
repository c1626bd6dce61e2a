"""`python -m jobs.pretrain_encoder`: see `fusionnet.commands.pretrain_encoder`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.pretrain_encoder import main

if __name__ == "__main__":
    run_job(main)
