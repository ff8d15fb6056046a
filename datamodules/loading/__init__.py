"""The data sets that workers run: from a planned batch, or a stream, to a ``Batch``."""
