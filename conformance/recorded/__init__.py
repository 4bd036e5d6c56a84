"""Recorded runs: played on a specification, cut, and made as short as they can be."""
