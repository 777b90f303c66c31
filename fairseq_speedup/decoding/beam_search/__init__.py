"""``--ctc-decoder beam``: searches over a model's log-probabilities, and what runs them."""
