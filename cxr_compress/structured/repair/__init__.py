"""Repairs of a pruned model on a few images, without labels: batch norms re-estimated, layers refitted."""
