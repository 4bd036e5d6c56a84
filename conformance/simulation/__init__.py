"""Whole runs of a manager in worlds that go wrong: drawn from a seed, checked, replayed, shrunk."""
