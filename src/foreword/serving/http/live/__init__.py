"""The live page: the prefix tree as it grows, for people."""
