"""What `vecmill bench` runs: ratios of interleaved runs, with a result file."""
