"""Benchmarks without a trainer: `geneval`, `gedit` and `understanding`, with `fidelity`, `statistics` and `reports`."""
