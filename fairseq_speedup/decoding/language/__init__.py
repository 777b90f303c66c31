"""How labels make words, which words there are, and how they follow each other."""
