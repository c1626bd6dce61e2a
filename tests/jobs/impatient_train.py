"""Run by test_train.py: jobs.train, which does not wait for whoever trains in its run folder."""

from fusionnet.commands import train
from fusionnet.commands.command import run_job
from fusionnet.runfolder import lock

if __name__ == "__main__":
    lock.WAIT_S = 0.0
    run_job(train.main)
