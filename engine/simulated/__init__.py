"""Fakes for tests: a clock that jumps, a disk that fails to order, copies that land by chance."""
