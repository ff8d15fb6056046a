"""By which endings files are taken for audio, in small letters; what they hold is decided by their bytes."""

_LIBSNDFILE = ".wav .flac .mp3 .ogg .oga .opus .aiff .aif .aifc .au .caf .w64 .sph"
_FFMPEG = ".m4a .aac .mp4 .mka .mkv .mov .webm .wma .amr .avi"
AUDIO_ENDINGS = frozenset(f"{_LIBSNDFILE} {_FFMPEG}".split())
