"""The one sample rate of the package."""

#: Samples per second of all audio behind the decoder; recordings of other rates are resampled.
SAMPLE_RATE_HZ = 16_000
