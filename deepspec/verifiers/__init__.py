"""Stock verifiers: the token rule and the delta (exact-match) rule."""
