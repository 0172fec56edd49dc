"""Requests to tokens, and the HTTP application around it; knows nothing of Ray or of training."""
