"""What the product is measured by: every script prints ratios to a limit or a peer."""
