"""Scores of language models on tasks, with intervals and tests of their differences."""
