"""Reads one file in a process of its own: `python -m assets.knowledge.worker FILE RESULT NAME MEDIA_TYPE`.

The limits come first, before anything looks at the file. It is given no secrets and no addresses: what a
hostile file could reach is this process and the file itself.
"""

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

CPU_SECONDS: Final = 60
MEMORY: Final = 1_500_000_000
RESULT: Final = 64_000_000
"""Bytes of the result: the text in JSON with its blocks."""


def main(arguments: list[str]) -> int:
    for limit, value in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, RESULT),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    path, result, name, media_type = arguments
    Path(result).write_text(json.dumps(read(Path(path), name, media_type), ensure_ascii=False))
    return 0


def read(path: Path, name: str, media_type: str) -> dict[str, object]:
    """Text and structure, or why there is none."""
    from assets.knowledge.parsers import parser_of  # noqa: PLC0415
    from assets.knowledge.parsers.detect import detect  # noqa: PLC0415
    from assets.knowledge.parsers.extract import RefusedError  # noqa: PLC0415

    try:
        kind = detect(path, name, media_type)
        extract = parser_of(kind)(path)
        if not any(map(str.isalnum, extract.text)):
            raise RefusedError("there is no text in the file")
    except RefusedError as error:
        return {"state": error.state, "reason": str(error)}
    except MemoryError:
        return {
            "state": "",
            "reason": f"reading the file takes more than {MEMORY // 1_000_000:,} MB of memory",
        }
    except RecursionError:
        return {"state": "failed", "reason": "the file nests too deeply to be read"}
    return {"state": "parsed", "kind": kind, **asdict(extract)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
