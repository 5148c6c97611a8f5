"""Probes: one check per file. Nothing is imported here (runpy imports a probe that runs alone twice)."""
