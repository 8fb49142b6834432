"""Files that are whole or not there."""

from datamodules.files import written_whole

__all__ = ["written_whole"]
