"""What benchmarks share: settings, timing, processes, publishing."""
