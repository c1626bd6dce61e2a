"""Measurements; importing `jobs` first lets their threads wait as those of the commands do."""

import jobs  # noqa: F401
