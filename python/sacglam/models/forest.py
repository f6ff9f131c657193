"""The packed batch as tensors: a prefix forest, and how attention runs over it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import AttentionPlan, plan_forest, plan_segments


@dataclass(frozen=True)
class Forest:
    """A batch of B rows as P distinct trees of T nodes, with E edges and C candidates.

    Attributes:
        ids, pos: int64 [T]; pos is the depth.
        longest: the deepest node's depth + 1.
        plan: attention among the nodes.
        read: int64 [R], rising: the nodes whose hidden states are read.
        head_rows: int64 [*], places in `read` whose next-token law is needed.
        edge_row, edge_token: int64 [E], an edge's place in `head_rows` and its token.
        path_offsets: int64 [C + 1], path_edges: int64 [*], each candidate's edges.
        candidate_offsets: int64 [P + 1], the candidates of each tree.
        leaf: int64 [C], place in `read` of the last token (None where leaves are elided).
        table: int64 [B, A], candidate of each batch row and column (0 where `mask` is False).
        mask: bool [B, A].
        encoder_ids: int64 [Te], for encoder-decoder models, with
        encoder_plan: attention among them, inside each prompt, and
        cross_plan: attention from each tree's nodes to its prompt.
        reencoded: for a critic that encodes prompt and action afresh: a forest with one row for
            each candidate of each batch row; with
        taken: a forest with one row for each batch row, of the candidate in
        taken_column: int64 [B], whose Q alone has a gradient (None: all have).
    """

    ids: Tensor
    pos: Tensor
    longest: int
    plan: AttentionPlan
    read: Tensor
    head_rows: Tensor
    edge_row: Tensor
    edge_token: Tensor
    path_offsets: Tensor
    path_edges: Tensor
    candidate_offsets: Tensor
    leaf: Tensor | None
    table: Tensor
    mask: Tensor
    encoder_ids: Tensor | None = None
    encoder_plan: AttentionPlan | None = None
    cross_plan: AttentionPlan | None = None
    reencoded: Forest | None = None
    taken: Forest | None = None
    taken_column: Tensor | None = None

    @property
    def num_rows(self) -> int:
        return self.table.shape[0]

    @cached_property
    def read_plan(self) -> AttentionPlan:
        """Attention of the nodes that are read to all of theirs."""
        return self.plan.only(self.read)

    @property
    def num_candidates(self) -> int:
        return self.path_offsets.shape[0] - 1

    def to(self, device: torch.device) -> Forest:
        """The same forest on a device; itself if it lies there."""
        if self.ids.device == device:
            return self
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, AttentionPlan):
                moved[field.name] = _plan_to(value, device)
            elif isinstance(value, Tensor | Forest):
                moved[field.name] = value.to(device)
        return replace(self, **moved)


def _plan_to(plan: AttentionPlan, device: torch.device) -> AttentionPlan:
    arrays = {
        name: array.to(device) for name, array in vars(plan).items() if isinstance(array, Tensor)
    }
    return replace(plan, **arrays, _cache={})


def forest_from_packed(packed: dict[str, Any], device: torch.device | str = "cpu") -> Forest:
    """Tensors of what `sacglam._C.ForestPacker.pack` returned."""
    device = torch.device(device)

    def tensor(array: Any) -> Tensor:
        return torch.from_numpy(array).to(device)

    def narrow(array: Any) -> Tensor:
        return tensor(array.astype(np.int32))

    offsets, trees = packed["candidate_offsets"], packed["tree_of_row"]
    columns = np.arange(int(packed["max_candidates"]))
    present = columns[None, :] < np.diff(offsets)[trees][:, None]
    table = np.where(present, offsets[trees][:, None] + columns[None, :], 0)

    total = len(packed["ids"])
    read = packed["head_rows"]
    if len(packed["leaf"]):
        read = np.union1d(read, packed["leaf"])
    tree_start = narrow(packed["tree_start"])
    encoder: dict[str, Any] = {}
    if len(packed["encoder_ids"]):
        count, start = len(packed["encoder_ids"]), packed["encoder_start"]
        where = np.arange(count) - np.repeat(start[:-1], np.diff(start))
        encoder_start = narrow(start)
        encoder = {
            "encoder_ids": tensor(packed["encoder_ids"]),
            "encoder_plan": plan_segments(encoder_start, count, q_pos=narrow(where)),
            "cross_plan": plan_segments(
                tree_start, total, encoder_start, count,
                longest=(int(np.diff(packed["tree_start"]).max()), int(np.diff(start).max())),
            ),
        }  # fmt: skip
    return Forest(
        ids=tensor(packed["ids"]),
        pos=tensor(packed["pos"]),
        longest=int(packed["pos"].max()) + 1,
        plan=plan_forest(
            narrow(packed["end"]), tree_start, prefix=packed["prefix"], pos=narrow(packed["pos"])
        ),
        read=tensor(read),
        head_rows=tensor(np.searchsorted(read, packed["head_rows"])),
        edge_row=tensor(packed["edge_row"]),
        edge_token=tensor(packed["edge_token"]),
        path_offsets=tensor(packed["path_offsets"]),
        path_edges=tensor(packed["path_edges"]),
        candidate_offsets=tensor(offsets),
        leaf=tensor(np.searchsorted(read, packed["leaf"])) if len(packed["leaf"]) else None,
        table=tensor(table),
        mask=tensor(present),
        **encoder,
    )
