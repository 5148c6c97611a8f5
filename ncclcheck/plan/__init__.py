"""`ncclcheck plan`: from a model and a cluster to a layout, what it will cost, and the commands that start it. Never imports torch or vLLM."""
