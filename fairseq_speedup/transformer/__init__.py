"""The transformer, reduced: which layers are kept, after which an utterance may leave, and where
frames are dropped or merge."""
