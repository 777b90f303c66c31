"""What fairseq-generate leaves: its files, word times, how they are scored, shards as one run."""
