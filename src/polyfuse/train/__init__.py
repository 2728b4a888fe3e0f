"""The training loop, checkpoints, and what turns a config into a model; the only folder that knows processes."""
