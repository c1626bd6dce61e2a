"""Studies of one question each; their verdicts are in results/LOG.md."""
