"""What hardware should give: tables of GPUs and links, each figure with its source, and what a collective costs over them."""
