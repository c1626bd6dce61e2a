"""`python -m jobs.predict`: see `fusionnet.commands.predict`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.predict import main

if __name__ == "__main__":
    run_job(main)
