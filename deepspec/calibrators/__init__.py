"""Stock calibrators."""
