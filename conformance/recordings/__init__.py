"""The scenarios of the recorded traces: small stories that together show every visible rule."""
