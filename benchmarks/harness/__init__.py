"""What every benchmark shares: checked and interleaved timing, results as JSON, tables and plots in the docs."""
