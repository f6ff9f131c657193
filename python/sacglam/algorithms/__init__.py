"""The algorithms as pure functions on tensors; B prompts, A candidates (padded with zeros)."""
