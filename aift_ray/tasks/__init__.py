"""What is asked of a model: tasks, their rows, prompts and scores."""
