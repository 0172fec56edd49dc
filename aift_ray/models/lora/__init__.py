"""LoRA adapters: target modules, initial weights, folders."""
