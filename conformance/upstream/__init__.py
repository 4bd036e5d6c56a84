"""Turning a recorded divergence into a test for the system that it was recorded on."""
