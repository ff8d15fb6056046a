"""The authors' released checkpoint, ``Stage3_FastSLM.pt``, as a run of this package."""
