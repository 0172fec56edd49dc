"""What generates tokens: one interface, an engine on transformers, one on vLLM."""
