"""Milvus 2.3.5 standalone, the newest server that exists as a wheel: what tests prove the vector store on.

The wheel is neither imported nor installed beside our client: what is needed of it are the server and its
libraries, each a compressed file.
"""

import lzma
import tempfile
from pathlib import Path

from deploy.provision import wheels
from deploy.provision.cache import Report, existing, filled, root

_PROGRAM = "milvus"


def find() -> Path | None:
    """The server where it is unpacked; its libraries lie beside it."""
    folder = existing(_folder())
    return None if folder is None else folder / _PROGRAM


def get(report: Report) -> Path:
    """Unpack the server into the cache: 246 MB.

    Raises:
        ProvisioningError: as `wheels.unpack`.
    """
    return filled(_folder(), lambda folder: _build(folder, report), report) / _PROGRAM


def _build(folder: Path, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix=f"{_folder()}.partial-", dir=root()) as wheel:
        packed = wheels.unpack(wheels.MILVUS, Path(wheel), report).parent
        report("Milvus: unpacking it, about 10 s")
        for file in packed.glob("*.lzma"):
            target = folder / file.stem
            target.write_bytes(lzma.decompress(file.read_bytes()))
            target.chmod(0o755)


def _folder() -> str:
    return f"{wheels.MILVUS.folder}-server"
