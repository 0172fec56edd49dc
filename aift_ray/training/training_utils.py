"""What the documented Python API imports from here; each has its home elsewhere."""

from aift_ray.config import TrainingConfig
from aift_ray.data.text_dataset import TextDataset

__all__ = ["TextDataset", "TrainingConfig"]
