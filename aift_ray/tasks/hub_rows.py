"""Rows of tasks that `datasets` reads from the Hugging Face Hub."""

from __future__ import annotations

from aift_ray.tasks.data_files import Row
from aift_ray.tasks.task import HubDataset

_INSTALL = "pip install 'aift-ray[datasets]'"


class HubError(Exception):
    """The rows can't be read.

    Attributes:
        remedy: what helps.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def read_hub_rows(dataset: HubDataset) -> list[Row]:
    """The rows of a dataset, numbered from 1; `datasets` keeps them in its cache.

    Raises:
        HubError: `datasets` is not installed, or can't read it.
    """
    where = f"the dataset {dataset.path}"
    try:
        from datasets import load_dataset
    except ImportError:
        raise HubError(f"datasets, which reads {where}, is not installed", _INSTALL) from None
    try:
        rows = load_dataset(dataset.path, dataset.name, split=dataset.split)
    except Exception as error:
        # of the network, of the Hub and of each kind of file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        remedy = "connect to the Hub, or fill the cache of datasets on a machine that does"
        raise HubError(f"{where} can't be read: {reason[0]}", remedy) from error
    return list(enumerate(rows, 1))
