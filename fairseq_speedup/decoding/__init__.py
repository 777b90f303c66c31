"""From CTC logits to the hypotheses that fairseq-generate prints."""
