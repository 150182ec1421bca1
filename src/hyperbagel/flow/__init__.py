"""Rectified flow on tensors: `schedule`, `trajectory`, `guidance`, `sampler`, and the `noise` that they start from."""
