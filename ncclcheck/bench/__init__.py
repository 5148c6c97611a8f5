"""`ncclcheck bench`: what a model's server does under load, by layout, setting and load, and what bounds it."""
