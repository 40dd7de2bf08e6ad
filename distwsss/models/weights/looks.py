"""What a file is by its first bytes, whatever it is called: what people have in place of weights. Called by `files`."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from distwsss.errors import CheckpointError

HEAD = 2048  # bytes looked at
TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin: a pickled number
AGAIN = "download the file itself again"
WEB_PAGE = re.compile(r"<(!doctype|html|\?xml|head|body)", re.IGNORECASE)
CONTROL = re.compile(r"[\0-\x08\x0e-\x1f]")  # no text has such characters
# first bytes -> what it is and what to do
ARCHIVES = {
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a rar archive; unpack it first",
    b"\x89HDF": "an HDF5 file, as Keras writes them; allowed: PyTorch's weights of the same network",
    b"%PDF": f"a PDF; {AGAIN}",
    b"\xff\xd8\xff": f"a JPEG picture; {AGAIN}",
    b"\x89PNG": f"a PNG picture; {AGAIN}",
}


def check_looks(path: Path) -> None:
    """Raises CheckpointError for what is surely no file of weights, saying what it is."""
    what = _what(path, _head(path))
    if what:
        raise CheckpointError(f"{path}: this is {what}")


def by_content(path: Path) -> str | None:
    """The suffix that the file would have by its content: .pth, .pkl or .safetensors; None where that does not say."""
    head = _head(path)
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return ".safetensors"
    if head.startswith((b"PK\3\4", TORCH)):
        return ".pth"
    return ".pkl" if head.startswith(b"\x80") else None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _what(path: Path, head: bytes) -> str | None:
    size = path.stat().st_size
    if not head.strip(b"\0"):
        return f"nothing but {size} zero bytes; {AGAIN}" if size else f"an empty file; {AGAIN}"
    if head.startswith(b"PK\3\4"):
        return _zip(path, size)
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    text = head.decode("utf-8", "replace").lstrip("\ufeff").strip()
    if WEB_PAGE.match(text) or ("\ufffd" not in text[:-4] and not CONTROL.search(text)):
        return _text(text, path)
    return next((what for start, what in ARCHIVES.items() if head.startswith(start)), None)


def _text(text: str, path: Path) -> str | None:
    if WEB_PAGE.match(text):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        named = f" ({' '.join(title[1].split())!r})" if title and title[1].strip() else ""
        return f"a web page{named}, saved in place of the weights; open its address in a browser and {AGAIN}"
    if text.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d+)$", text, re.MULTILINE)
        of = f" of {int(size[1]):,} bytes" if size else ""
        return f"a Git LFS pointer, not the file{of} that it stands for; run `git lfs pull` in its repository"
    if path.suffix.lower() == ".pkl":  # a pickle may be text
        return None
    return f"text ({text[:60]!r}), not weights; {AGAIN}"


def _zip(path: Path, size: int) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return f"a PyTorch or zip file that was cut short or damaged ({size:,} bytes are here); {AGAIN}"
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return (
            "a TorchScript archive, a network with its code, which is not run; allowed: its weights alone, "
            "`torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')` where you trust it"
        )
    if not any(name.endswith("data.pkl") for name in names):
        some = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        return f"a zip of {some or 'nothing'}; unpack it, and give the file of weights in it"
    return None
