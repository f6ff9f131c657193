"""The algorithms as pure functions on tensors. B prompts, A candidates (padded, masked by zeros)."""
