"""Reinforcement learning: completions are generated, scored by rewards, and trained."""
