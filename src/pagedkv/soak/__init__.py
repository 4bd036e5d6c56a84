"""A soak: the real engine under load for as long as one likes, and checked throughout."""
