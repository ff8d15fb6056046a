"""A tar read to its last byte: also behind zeros, where ``tarfile`` stops, and behind what is no header."""

import io
import tarfile
from typing import Any, NamedTuple

_ZEROS = bytes(1 << 20)
_LONGEST_NAMES_BYTES = 1 << 20  # of a header that holds names or attributes; it is read at once


class Gap(NamedTuple):
    """Bytes that belong to no member, from ``begin`` to ``end``: zeros alone, or something ``damaged``."""

    begin: int
    end: int
    damaged: bool

    def __str__(self) -> str:
        return f"{'damaged' if self.damaged else 'zeros'} at byte {self.begin}"


class _Header(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> "_Header":
        tar: WholeTar = tarfile_
        begin = tar.position
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.pass_zeros(begin)
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            if begin == 0:
                raise tarfile.ReadError(str(error)) from error
            tar.skip(begin, damaged=True)
            raise tarfile.InvalidHeaderError(str(error)) from error  # type: ignore[attr-defined]  # goes on behind it

    def _proc_member(self, tar: "WholeTar") -> tarfile.TarInfo:
        names = self.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"x", b"g", b"X")
        if self.size < 0 or (names and self.size > _LONGEST_NAMES_BYTES):
            raise tarfile.InvalidHeaderError("impossible size")  # type: ignore[attr-defined]
        return super()._proc_member(tar)  # type: ignore[misc, no-any-return]


class WholeTar(tarfile.TarFile):
    """A tar whose members are all read, and that tells what lies between them.

    Open it with ``WholeTar.open``, from a file or a stream.
    """

    tarinfo = _Header
    ignore_zeros = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._gaps: list[Gap] = []
        super().__init__(*arguments, **options)

    @property
    def position(self) -> int:
        """Up to which byte it is read."""
        return self.fileobj.tell()

    def gaps(self) -> list[Gap]:
        """Return what was passed over since this was asked last."""
        gaps, self._gaps = self._gaps, []
        return gaps

    def skip(self, begin: int, damaged: bool) -> None:
        """Note that the bytes from ``begin`` to where it is read now are no member."""
        if self._gaps and self._gaps[-1].end >= begin:
            last = self._gaps.pop()
            begin, damaged = last.begin, last.damaged or damaged
        self._gaps.append(Gap(begin, self.position, damaged))

    def pass_zeros(self, begin: int) -> None:
        """Go on to the block that holds more than zeros; a stream, which cannot go back, takes them block by block."""
        file: Any = self.fileobj
        if isinstance(file, io.BufferedIOBase):
            while block := file.read(len(_ZEROS)):
                if block != _ZEROS[: len(block)]:
                    left = len(block.lstrip(tarfile.NUL))
                    file.seek(file.tell() - left)
                    file.seek(file.tell() // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE)
                    break
        self.skip(begin, damaged=False)
