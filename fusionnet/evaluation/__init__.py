"""Metrics, baselines, report and plots of a finished run."""
