"""Reproducible comparisons: the protocol is code, the numbers are a report."""
