"""The transformer, reduced: which layers are kept, and after which an utterance may leave."""
