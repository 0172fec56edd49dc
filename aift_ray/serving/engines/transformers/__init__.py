"""The engine on transformers: continuous batching in a thread of its own."""
