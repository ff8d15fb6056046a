"""A source of batches for fastslm: WAV files with their transcripts beside them."""

from fastslm_folder_source.folder_source import FolderSource

__all__ = ["FolderSource"]
