"""`python -m jobs.make_corpus`: see `fusionnet.commands.make_corpus`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.make_corpus import main

if __name__ == "__main__":
    run_job(main)
