"""`python -m jobs.evaluate_model`: see `fusionnet.commands.evaluate_model`."""

from fusionnet.commands.command import run_job
from fusionnet.commands.evaluate_model import main

if __name__ == "__main__":
    run_job(main)
