"""What a user of the library reaches for beside models and trainers."""
