"""The encoding of a file, by its first bytes: only UTF-8 is read, and a file in another encoding is reported."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

HEAD = 1 << 16  # bytes that are looked at
_MARKS = {  # the longer first: the mark of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF32_LE: ("UTF-32", "UTF-32"),
    codecs.BOM_UTF32_BE: ("UTF-32", "UTF-32"),
    codecs.BOM_UTF16_LE: ("UTF-16", "UTF-16"),
    codecs.BOM_UTF16_BE: ("UTF-16", "UTF-16"),
}
_TURKISH = frozenset("çöüğışÇÖÜĞİŞ".encode("cp1254"))
_MANY = 20
_UNPACK = {None: "", "gzip": "gzip -dc", "zstd": "zstd -dc"}
_PACK = {None: "", "gzip": " | gzip", "zstd": " | zstd"}


def encoding_problem(head: bytes, file: Path, compression: str | None) -> str | None:
    """What is wrong with a file that is not UTF-8 and what to do; None if its first (decompressed) bytes can be read.

    Single records that are not UTF-8 are not a problem of the file: they count as malformed.
    """
    found = _other_encoding(head)
    if found is None:
        return None
    said, name = found
    if name is None:
        return f"{said}; save it as UTF-8, or convert it: iconv -f ITS_ENCODING -t UTF-8"
    source, fresh = shlex.quote(str(file)), shlex.quote(f"{file}.utf8")
    convert = f"iconv -f {name} -t UTF-8"
    command = f"{_UNPACK[compression]} {source} | {convert}" if compression else f"{convert} {source}"
    return f"{said}; convert it: {command}{_PACK[compression]} > {fresh} && mv {fresh} {source}"


def _other_encoding(head: bytes) -> tuple[str, str | None] | None:
    """A message about the encoding, and its name for iconv if known; None if the file can be read."""
    for mark, (said, name) in _MARKS.items():
        if head.startswith(mark):
            return f"is {said}, not UTF-8", name
    if b"\0" in head and (order := _unmarked_utf16(head)):
        return "is UTF-16 without a byte order mark, not UTF-8", f"UTF-16{order}"
    if _decodes(head, "utf-8"):
        return None
    # The last line may be cut anywhere.
    whole = (head[: head.rfind(b"\n") + 1] or head) if len(head) >= HEAD else head
    lines = [line for line in whole.split(b"\n") if line.strip()]
    odd = [line for line in lines if not line.isascii()]
    broken = [line for line in odd if not _decodes(line, "utf-8", final=True)]
    if not broken or len(broken) < len(odd):
        return None  # the other lines that are not ASCII are UTF-8
    high = [byte for line in broken for byte in line if byte >= 0x80]
    turkish = sum(byte in _TURKISH for byte in high)
    often = 2 * len(broken) >= len(lines) or len(broken) >= _MANY
    if often and turkish >= 0.8 * len(high) and _decodes(b"\n".join(broken), "cp1254", final=True):
        return "is not UTF-8 and looks like cp1254 (Turkish Windows)", "CP1254"
    if 2 * len(broken) > len(lines) >= _MANY:
        return "is not UTF-8", None
    return None


def _unmarked_utf16(head: bytes) -> str | None:
    """`LE` or `BE` if every other byte is often zero, like the upper halves of ASCII letters and spaces."""
    if head.count(0) < 4:
        return None
    pairs = len(head) // 2
    even, odd = head[0::2].count(0) / pairs, head[1::2].count(0) / pairs
    for order, upper, lower in (("LE", odd, even), ("BE", even, odd)):
        if upper >= 0.1 and lower <= 0.1 * upper and _decodes(head, f"utf-16-{order}"):
            return order
    return None


def _decodes(value: bytes, encoding: str, final: bool = False) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(value, final)
    except UnicodeDecodeError:
        return False
    return True
