"""What moves the bytes of the planner's transfers, outside of every decision."""
