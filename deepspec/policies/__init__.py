"""Stock length policies."""
