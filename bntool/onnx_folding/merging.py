"""Parallel branches and chains of an ONNX model made one Conv each, before its norms are folded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onnx import ModelProto

from bntool.branches import find_merges
from bntool.globs import matches
from bntool.graphs.onnx_ir import read
from bntool.graphs.onnx_merge import apply_merges
from bntool.graphs.onnx_tensors import Store
from bntool.report.merges import Merged, merged


def merge_branches(
    model: ModelProto, store: Store, shapes: Mapping[str, Iterable[int]], keep: Sequence[str]
) -> list[Merged]:
    """Merges in place until nothing is left to merge; no norm that `keep` names goes."""

    done: list[Merged] = []
    while True:
        graph = read(model, store, shapes)
        merges = find_merges(graph, keep=lambda n: matches(n.where, keep))
        names = apply_merges(graph, merges)
        done += merged(graph, merges, names)
        if not any(names):
            return done
