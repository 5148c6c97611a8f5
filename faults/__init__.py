"""Faults: one way to break a job per file."""
