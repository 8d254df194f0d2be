"""Flash's import path of `download_data`."""

from flash_launch.data.download import download_data

__all__ = ["download_data"]
