"""The packed batch as tensors: a prefix forest, and where its rows lie when padded per tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class PaddedRows:
    """A map between packed rows [T] and rows padded per tree [P, L].

    Attributes:
        pad: int64 [P * L], the packed row of every slot (0 where the slot is empty).
        unpad: int64 [T], the slot of every packed row.
        used: bool [P, L], slots that hold a row.
    """

    pad: Tensor
    unpad: Tensor
    used: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.used.shape[0], self.used.shape[1]

    @staticmethod
    def build(tree: Any, slot: Any, trees: int, length: int, device: torch.device) -> PaddedRows:
        unpad = tree * length + slot
        pad = np.zeros(trees * length, dtype=np.int64)
        pad[unpad] = np.arange(len(unpad))
        used = np.zeros(trees * length, dtype=bool)
        used[unpad] = True
        return PaddedRows(
            torch.from_numpy(pad).to(device),
            torch.from_numpy(unpad).to(device),
            torch.from_numpy(used.reshape(trees, length)).to(device),
        )


@dataclass(frozen=True)
class TreeLayout:
    """Attention layout of the forest: each tree is a chain of at most Lc nodes, then a trie of at
    most N, padded to Lc + N slots.

    Attributes:
        rows: where packed nodes lie in the padded slots.
        chain: Lc.
        trie_mask: bool [P, N, Lc + N], the keys that a trie node sees: j <= i < end[j].
        end: int64 [T], one past the last descendant, for the dense reference.
        pos: int64 [T], depth.
        offset: int64 [P, Lc + N], depth of each slot (0 where empty).
    """

    rows: PaddedRows
    chain: int
    trie_mask: Tensor
    end: Tensor
    pos: Tensor
    depth: Tensor


@dataclass(frozen=True)
class Forest:
    """A batch of B rows as P distinct trees of T nodes, with E edges and C candidates.

    Attributes:
        ids, pos: int64 [T].
        layout: for attention among the nodes.
        head_rows: int64 [R], nodes whose next-token law is needed.
        edge_row, edge_token: int64 [E].
        path_edges, path_candidate: int64 [*], each candidate's edges and whose they are.
        path_length: float [C], number of tokens.
        leaf: int64 [C], node of the last token (None where leaves are elided).
        table: int64 [B, A], candidate of each batch row and column (0 where `mask` is False).
        mask: bool [B, A].
        encoder_ids: int64 [Te] and encoder_rows, for encoder-decoder models.
    """

    ids: Tensor
    pos: Tensor
    layout: TreeLayout
    head_rows: Tensor
    edge_row: Tensor
    edge_token: Tensor
    path_edges: Tensor
    path_candidate: Tensor
    path_length: Tensor
    leaf: Tensor | None
    table: Tensor
    mask: Tensor
    tree_of_row: Tensor
    encoder_ids: Tensor | None
    encoder_rows: PaddedRows | None

    @property
    def num_rows(self) -> int:
        return self.table.shape[0]

    @property
    def num_candidates(self) -> int:
        return self.path_length.shape[0]


def _tree_of(start: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(start) - 1), np.diff(start))


def forest_from_packed(packed: dict[str, Any], device: torch.device | str = "cpu") -> Forest:
    """Tensors of what `sacglam._C.ForestPacker.pack` returned."""
    device = torch.device(device)

    def tensor(array: Any) -> Tensor:
        return torch.from_numpy(array).to(device)

    start, chain_length, end = packed["tree_start"], packed["chain_length"], packed["end"]
    trees, total = len(start) - 1, len(packed["ids"])
    chain, trie = int(packed["max_chain"]), int(packed["max_trie"])
    tree = _tree_of(start)
    local = np.arange(total) - start[tree]
    in_chain = local < chain_length[tree]
    slot = np.where(in_chain, local, chain + local - chain_length[tree])
    rows = PaddedRows.build(tree, slot, trees, chain + trie, device)

    index = np.full(trees * (chain + trie), total, dtype=np.int64)  # an empty slot sees nothing,
    until = np.zeros(trees * (chain + trie), dtype=np.int64)  # and nothing sees it
    where = tree * (chain + trie) + slot
    index[where] = np.arange(total)
    until[where] = end
    index, until = index.reshape(trees, -1), until.reshape(trees, -1)
    query = index[:, chain:, None]
    mask = (index[:, None, :] <= query) & (query < until[:, None, :])
    mask[..., 0] |= query[..., 0] == total  # an empty query sees slot 0: no row of -inf
    depth = np.zeros(trees * (chain + trie), dtype=np.int64)
    depth[where] = packed["pos"]

    offsets = packed["candidate_offsets"]
    counts = np.diff(offsets)[packed["tree_of_row"]]
    columns = np.arange(int(packed["max_candidates"]))
    present = columns[None, :] < counts[:, None]
    table = np.where(present, offsets[packed["tree_of_row"]][:, None] + columns[None, :], 0)

    path_length = np.diff(packed["path_offsets"])
    encoder_ids = encoder_rows = None
    if len(packed["encoder_ids"]):
        encoder_start = packed["encoder_start"]
        encoder_tree = _tree_of(encoder_start)
        encoder_slot = np.arange(len(encoder_tree)) - encoder_start[encoder_tree]
        encoder_ids = tensor(packed["encoder_ids"])
        encoder_rows = PaddedRows.build(
            encoder_tree, encoder_slot, trees, int(np.diff(encoder_start).max()), device
        )
    return Forest(
        ids=tensor(packed["ids"]),
        pos=tensor(packed["pos"]),
        layout=TreeLayout(
            rows, chain, tensor(mask), tensor(end), tensor(packed["pos"]),
            tensor(depth.reshape(trees, -1)),
        ),
        head_rows=tensor(packed["head_rows"]),
        edge_row=tensor(packed["edge_row"]),
        edge_token=tensor(packed["edge_token"]),
        path_edges=tensor(packed["path_edges"]),
        path_candidate=tensor(np.repeat(np.arange(len(path_length)), path_length)),
        path_length=tensor(path_length.astype(np.float32)),
        leaf=tensor(packed["leaf"]) if len(packed["leaf"]) else None,
        table=tensor(table),
        mask=tensor(present),
        tree_of_row=tensor(packed["tree_of_row"]),
        encoder_ids=encoder_ids,
        encoder_rows=encoder_rows,
    )  # fmt: skip
