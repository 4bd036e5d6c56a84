"""Comparing implementations: the same workload on each of them, over many cache sizes."""
