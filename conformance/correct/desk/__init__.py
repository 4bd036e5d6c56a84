"""What the three managers have in common: calls as far as the rules leave no choice."""
