"""Learning curves: tuned, compared, and what they say."""
