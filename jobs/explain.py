"""`python -m jobs.explain`: see `fusionnet.commands.explain`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.explain import main

if __name__ == "__main__":
    run_job(main)
