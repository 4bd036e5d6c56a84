"""Streams of copies between device and host memory: CUDA, CPU threads, and simulated ones."""
