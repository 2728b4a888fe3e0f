"""Metrics, all-subset sweeps, baselines and intervals: predictions in, plain records out."""
