"""What every bench writes: `build/bench/<name>.json` with `ratios` and `figures`."""

import json
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

FOLDER = Path(__file__).parents[2] / "build" / "bench"


def write(name: str, ratios: Mapping[str, float], figures: Mapping[str, object]) -> Path:
    """Write and print the result. `ratios` are what a promise is kept or broken by."""
    machine = {"cpus": psutil.cpu_count(), "memory_mb": psutil.virtual_memory().total >> 20}
    content = {
        "bench": name,
        "arguments": shlex.join(sys.argv[1:]),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {**machine, "python": platform.python_version(), "system": platform.platform(terse=True)},
        "ratios": {key: round(value, 4) for key, value in ratios.items()},
        "figures": figures,
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps({"ratios": content["ratios"], "figures": figures}, indent=2))
    print(f"written to {path}")
    return path
