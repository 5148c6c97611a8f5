"""Diagnostics for distributed PyTorch, NCCL and vLLM."""

__version__ = "0.1.0"
