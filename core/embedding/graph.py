"""Builds the encoder of multilingual-e5-small as an ONNX graph from its 4-bit weights.

BERT (Devlin et al. 2019) in 8 bits by channel, written with the operators that ONNX Runtime computes fastest on a
CPU; which those are was measured, not guessed: `SkipLayerNormalization` takes twelve times as long as an addition and
`LayerNormalization`, attention without a mask half as long as with one. So a text goes through alone, without
padding. The word table stays outside: 250,000 rows, of which a text needs a few.

`python -m core.embedding.graph FILE` writes it. Input: `embeddings` float32 (1, tokens, hidden), words and positions
summed. Output: `hidden` float32 of the same shape.
"""

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from core.embedding.weights import Weights, installed

VERSION: Final = "3"
"""Part of the model's digest: raise it with every change that changes a vector."""
_FUSED: Final = "com.microsoft"
_LARGEST: Final = 64
"""Of a quantised weight, seven bits: with eight, processors without VNNI overflow where two products are added."""


def build(weights: Weights) -> bytes:
    """The quantised graph, serialised; needs the package `onnx` and takes a second."""
    found: bytes = _Graph(weights).model().SerializeToString()
    return found


class _Graph:
    def __init__(self, weights: Weights) -> None:
        self._weights, self._shape = weights, weights.shape
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def model(self) -> Any:
        from onnx import TensorProto, helper  # noqa: PLC0415

        shape, named = self._shape, helper.make_tensor_value_info
        x = self._norm("embeddings", "emb.ln", "layer0")
        for number in range(shape.layers):
            x = self._layer(number, x, "hidden" if number == shape.layers - 1 else f"layer{number + 1}")
        of: list[str | int | None] = [1, "tokens", shape.hidden]
        graph = helper.make_graph(
            self._nodes,
            "multilingual-e5-small",
            [named("embeddings", TensorProto.FLOAT, of)],
            [named("hidden", TensorProto.FLOAT, of)],
            self._constants,
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(_FUSED, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def _layer(self, number: int, x: str, out: str) -> str:
        hidden, wide, name = self._shape.hidden, self._shape.feed_forward, f"l{number}."
        qkv = [f"{name}{part}" for part in "qkv"]
        together = self._linear(x, f"{name}qkv", qkv, hidden)
        self._node("Split", [together], *qkv, domain="", axis=-1, num_outputs=3)
        attention = self._node("MultiHeadAttention", qkv, f"{name}attention", num_heads=self._shape.heads)
        attention = self._linear(attention, f"{name}attended", [f"{name}ao"], hidden)
        x = self._norm(self._sum(attention, x, f"{name}asum"), f"{name}aln", f"{name}anorm")
        inner = self._linear(x, f"{name}inner", [f"{name}fi"], hidden)
        inner = self._linear(self._node("Gelu", [inner], f"{name}gelu"), f"{name}outer", [f"{name}fo"], wide)
        return self._norm(self._sum(inner, x, f"{name}sum"), f"{name}oln", out)

    def _sum(self, x: str, y: str, out: str) -> str:
        return self._node("Add", [x, y], out, domain="")

    def _norm(self, x: str, name: str, out: str) -> str:
        inputs = [x, self._vector(f"{name}.w"), self._vector(f"{name}.b")]
        return self._node("LayerNormalization", inputs, out, domain="", axis=-1, epsilon=self._shape.epsilon)

    def _linear(self, x: str, out: str, names: list[str], columns: int) -> str:
        """The product with the matrices of these names, side by side, and the sum with their biases."""
        matrix = np.concatenate([self._weights.tensor(f"{name}.w", columns).T for name in names], axis=1)
        scale = (np.abs(matrix).max(axis=0) / _LARGEST).astype(np.float32)
        scale[scale == 0] = 1
        inputs = [
            x,
            self._constant(f"{out}.w", np.rint(matrix / scale).astype(np.int8)),
            self._constant(f"{out}.scale", scale),
            self._constant(f"{out}.zero", np.zeros(len(scale), np.int8)),
            self._constant(f"{out}.b", np.concatenate([self._weights.tensor(f"{name}.b") for name in names])),
        ]
        return self._node("DynamicQuantizeMatMul", inputs, out)

    def _vector(self, name: str) -> str:
        return self._constant(name, self._weights.tensor(name))

    def _constant(self, name: str, values: Any) -> str:
        from onnx import numpy_helper  # noqa: PLC0415

        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _node(self, kind: str, inputs: list[str], *outs: str, domain: str = _FUSED, **attributes: Any) -> str:
        """Returns the first of its results."""
        from onnx import helper  # noqa: PLC0415

        node = helper.make_node(kind, inputs, outs, name=f"{kind} {outs[0]}", domain=domain, **attributes)
        self._nodes.append(node)
        return outs[0]


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(build(Weights(installed())))
