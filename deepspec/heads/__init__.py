"""Stock sequential heads."""
