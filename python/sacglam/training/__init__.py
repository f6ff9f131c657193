"""The loop: collector, learner, evaluation, checkpoints, metrics."""
