"""Event traces: recorded runs of a manager, call by call and landing by landing."""
