"""Does fusing two searches ever hurt? `make bench NAME=retrieval` (data: `../shared/data/retrieval`).

nDCG@10 of dense, lexical and hybrid search on Cranfield (English, graded) and CMRC 2018 (Chinese), by the product's
own path: its chunker, model, tokens, vector store (an embedded server of our own) and fusion. A document counts at the
place of its first passage. The promise: hybrid >= the best single search - 0.002 on each set.

Embedding is nearly all of it, about 3 minutes of a core. Vectors are kept below `build/` by the hash of their text, so
that a run that was cut off goes on, and the next one measures at once; `--fresh` forgets them.
"""

import argparse
import hashlib
import json
import math
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from assets.knowledge.chunking import divide, embedded_text
from assets.knowledge.parsers.extract import Writer
from core.embedding import EmbeddingModel, open_model
from core.knowledge.fusion import CANDIDATES, fuse
from core.knowledge.terms import terms
from core.settings import VectorSettings
from core.vectors import Chunk, Vectors, chunk_id
from deploy.servers.milvus_lite import milvus_lite
from tests.bench import report
from tests.real_data import REPOSITORY, real_data
from tests.servers import free_port, running

TENANT = "org_bench"
AT = 10
SLACK = 0.002
GROUP = 64


@dataclass(frozen=True)
class Collection:
    """`relevant`: for each question, document to gain."""

    name: str
    documents: Mapping[str, str]
    questions: Sequence[tuple[str, Mapping[str, float]]]


def cranfield(folder: Path) -> Collection:
    """1,400 abstracts, 225 questions; a judgement of 1 is the best, 4 the least, -1 none."""
    parts = re.split(r"^\.I (\d+)\n", (folder / "cran.all.1400").read_text(), flags=re.MULTILINE)[1:]
    documents = {
        number: body.partition("\n.W\n")[2].strip()
        for number, body in zip(parts[::2], parts[1::2], strict=True)
    }
    gains: dict[str, dict[str, float]] = {}
    for line in (folder / "cranqrel").read_text().splitlines():
        question, document, code = line.split()
        if int(code) > 0:
            gains.setdefault(question, {})[document] = 5.0 - int(code)
    texts = re.split(r"^\.I \d+\n\.W\n", (folder / "cran.qry").read_text(), flags=re.MULTILINE)[1:]
    # Judgements count the questions from 1, whatever numbers stand in their file.
    questions = [
        (" ".join(body.split()), gains[str(number)])
        for number, body in enumerate(texts, 1)
        if str(number) in gains
    ]
    return Collection("cranfield", {id: body for id, body in documents.items() if body}, questions)


def cmrc(folder: Path, most: int) -> Collection:
    """848 passages of Wikipedia; each question was written for one of them."""
    paragraphs = [
        paragraph
        for article in json.loads((folder / "cmrc2018_dev.json").read_text())["data"]
        for paragraph in article["paragraphs"]
    ]
    documents = {paragraph["id"]: paragraph["context"] for paragraph in paragraphs}
    questions = [(qa["question"], {one["id"]: 1.0}) for one in paragraphs for qa in one["qas"]]
    random.Random(7).shuffle(questions)
    return Collection("cmrc2018", documents, questions[:most])


class Kept:
    """Vectors of passages that are made once: rows of SHA-256 and vector in one file.

    A vector depends on its text and the model alone, so that this changes no figure but the time.
    """

    def __init__(self, model: EmbeddingModel, file: Path) -> None:
        self._model, self._file = model, file
        self._row = np.dtype([("sha256", "V32"), ("vector", "<f4", (model.dimensions,))])
        whole = file.stat().st_size // self._row.itemsize if file.exists() else 0
        rows = np.fromfile(file, self._row, whole) if whole else np.empty(0, self._row)
        self._known = {bytes(row["sha256"]): row["vector"] for row in rows}
        if file.exists():
            os.truncate(file, whole * self._row.itemsize)
        self.made, self.seconds = 0, 0.0
        """Passages that went through the model in this run, and CPU-seconds that took."""

    def passages(self, texts: Sequence[str]) -> list[npt.NDArray[np.float32]]:
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        if new:
            began = time.process_time()
            found = self._model.passages([*new.values()])
            self.seconds += time.process_time() - began
            self.made += len(new)
            with self._file.open("ab") as file:
                np.array(list(zip(map(np.void, new), found, strict=True)), self._row).tofile(file)
            self._known |= zip(new, found, strict=True)
        return [self._known[key] for key in keys]


def index(collection: Collection, vectors: Vectors, model: EmbeddingModel, kept: Kept) -> int:
    """Put the documents into the index as the product does; returns the number of passages."""
    rows = []
    for document, body in collection.documents.items():
        writer = Writer()
        for paragraph in body.split("\n\n"):
            writer.add(paragraph)
        extract = writer.finish()
        rows += [
            (document, one, extract.text[one.start : one.end], embedded_text(extract.text, one))
            for one in divide(extract, model)
        ]
    for start in range(0, len(rows), GROUP):
        group = rows[start : start + GROUP]
        found = kept.passages([embedded for *_, embedded in group])
        chunks = [
            Chunk(
                id=chunk_id(TENANT, collection.name, document, 1, one.number, body),
                document=document,
                version=1,
                number=one.number,
                text=body,
                terms=terms(embedded),
                vector=vector.tolist(),
                start=one.start,
                end=one.end,
                knowledge_base=collection.name,
            )
            for (document, one, body, embedded), vector in zip(group, found, strict=True)
        ]
        vectors.upsert(TENANT, chunks)
        say(f"{collection.name}: {start + len(group)} of {len(rows)} passages in the index")
    return len(rows)


def ndcg(ranking: Sequence[str], gains: Mapping[str, float]) -> float:
    """Normalised discounted cumulative gain at 10 (Järvelin and Kekäläinen 2002)."""
    gained = sum(gains.get(id, 0.0) / math.log2(place + 2) for place, id in enumerate(ranking[:AT]))
    ideal = sorted(gains.values(), reverse=True)[:AT]
    return gained / sum(gain / math.log2(place + 2) for place, gain in enumerate(ideal))


def measure(collection: Collection, vectors: Vectors, model: EmbeddingModel) -> dict[str, float]:
    totals = dict.fromkeys(("dense", "lexical", "hybrid"), 0.0)
    for number, (question, gains) in enumerate(collection.questions, 1):
        if number % 100 == 0:
            say(f"{collection.name}: {number} of {len(collection.questions)} questions")
        vector = model.query(question).tolist()
        near = vectors.dense(TENANT, vector, CANDIDATES, [collection.name])
        wordy = vectors.lexical(TENANT, terms(question), CANDIDATES, [collection.name])
        document = {hit.id: hit.document for hit in (*near, *wordy)}
        fused = fuse({hit.id: hit.score for hit in near}, {hit.id: hit.score for hit in wordy})
        totals["dense"] += ndcg(_distinct(hit.document for hit in near), gains)
        totals["lexical"] += ndcg(_distinct(hit.document for hit in wordy), gains)
        totals["hybrid"] += ndcg(_distinct(document[one.id] for one in fused), gains)
    return {name: total / len(collection.questions) for name, total in totals.items()}


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _distinct(documents: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(documents))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--questions", type=int, default=600, help="of CMRC; all 3,219 take five times as long"
    )
    parser.add_argument("--fresh", action="store_true", help="embed everything again")
    arguments = parser.parse_args()
    sets: dict[str, Callable[[Path], Collection]] = {
        "cranfield": cranfield,
        "cmrc2018": lambda folder: cmrc(folder, arguments.questions),
    }
    folders = {name: real_data("retrieval", name) for name in sets}
    if missing := [name for name, folder in folders.items() if folder is None]:
        print(f"needs {', '.join(missing)} below HEADRACE_DATA (../shared/data)", file=sys.stderr)
        return 2
    model = open_model(VectorSettings(embedding_model="e5"), REPOSITORY / "build" / "state")
    report.FOLDER.mkdir(parents=True, exist_ok=True)
    file = report.FOLDER / f"retrieval-{model.digest[:16]}.vectors"
    if arguments.fresh:
        file.unlink(missing_ok=True)
    ratios: dict[str, float] = {}
    figures: dict[str, object] = {"model": model.name, "store": "milvus-lite server, through core.vectors"}
    promise = True
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        with running(milvus_lite(Path(folder), port), Path(folder) / "log"):
            vectors = Vectors(VectorSettings(vectors_url=f"http://127.0.0.1:{port}"), timeout=60)
            vectors.ensure(model)
            for name, read in sets.items():
                source = folders[name]
                assert source is not None
                collection = read(source)
                kept = Kept(model, file)
                passages = index(collection, vectors, model, kept)
                say(f"{name}: {len(collection.questions)} questions")
                found = measure(collection, vectors, model)
                best = max(found["dense"], found["lexical"])
                promise &= found["hybrid"] >= best - SLACK
                ratios[f"{name}_hybrid_to_best_single"] = found["hybrid"] / best
                figures[name] = {
                    "documents": len(collection.documents),
                    "passages": passages,
                    "questions": len(collection.questions),
                    **{f"ndcg10_{key}": round(value, 4) for key, value in found.items()},
                    "passages_embedded_in_this_run": kept.made,
                    "passages_embedded_per_cpu_second": round(kept.made / kept.seconds, 1)
                    if kept.made
                    else f"none, all were in {file.name}",
                }
            vectors.close()
    report.write("retrieval", ratios, figures)
    print(
        "the promise holds on each set" if promise else f"BROKEN: hybrid is below the best single - {SLACK}"
    )
    return 0 if promise else 1


if __name__ == "__main__":
    sys.exit(main())
