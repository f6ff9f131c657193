"""Forests padded to few sizes, with the same scores: what a CUDA graph can be replayed on.

A graph is recorded for one size of every tensor. A forest is therefore enlarged by trees, tokens,
edges and candidates of no consequence. All arrays of the padded forest are views of one vector of
int64, so that one copy moves them to a device.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels import plan_forest, plan_segments
from .forest import Forest

# One tree of padding for so many tokens, of which a fifth or so are padding: attention works tree
# by tree, and one long tree would take longer than all the real ones beside it.
_TREE_TOKENS = 256
# Arrays begin at multiples of this many int64: kernels compiled for aligned pointers serve them.
_ALIGN = 16


class Sizes(NamedTuple):
    """The sizes of a padded forest, of which equal ones share a graph. As many edges are held as
    entries of the candidates' paths."""

    tokens: int  # T
    read: int  # R
    heads: int  # nodes whose next-token law is needed; all that are read if there are no leaves
    leaves: bool  # whether candidates' last tokens are read too
    path_edges: int  # entries of all candidates' paths
    candidates: int  # C
    rows: int  # B
    columns: int  # A
    encoder_tokens: int  # Te; 0 for causal models
    longest: tuple[int, int]  # bounds on a tree's and its prompt's tokens; 0 for causal models
    prefix: int  # leading tokens that all trees continue, as they are
    reencoded: Sizes | None = None  # of the forests that a critic of its own passes reads
    taken: Sizes | None = None

    @property
    def computed(self) -> int:
        """Tokens that passes over it compute."""
        inner = sum(part.computed for part in (self.reencoded, self.taken) if part is not None)
        return self.tokens + self.encoder_tokens + inner

    @property
    def trees(self) -> int:
        """P: one for each row, as if no two were alike, and those that hold the padding."""
        return self.rows + 1 + max(self.tokens, self.encoder_tokens) // _TREE_TOKENS


def round_up(count: int, parts: int = 4) -> int:
    """The next of 2^k * {1, 1 + 1/parts, ..., 2 - 1/parts}, less than 1/parts more. Where that is
    finer, the next multiple of 64, since a GPU's products take as long. For sizes that cost
    time; parts is a power of two."""
    step = max(64, 1 << max(0, (count - 1).bit_length() - parts.bit_length()))
    return -(-count // step) * step


def power_of_two(count: int) -> int:
    """The next power of two, at least 16. For sizes that cost next to nothing."""
    return max(16, 1 << (count - 1).bit_length())


def padded_sizes(
    forest: Forest, *, leaves: bool = False, rows: int | None = None, parts: int = 4
) -> Sizes:
    """The sizes that a forest is padded to. Few are chosen freely, so that few graphs are made.

    Args:
        leaves: keep what the critic's heads read; else the policy alone is asked.
        rows: the number of rows, if it is to be exact.
        parts: see `round_up`.
    """
    if leaves and forest.leaf is None:
        raise ValueError("the forest was packed without leaves")
    nodes, heads = forest.ids.shape[0], forest.head_rows.shape[0]
    read = forest.read.shape[0] if leaves else heads
    # Added rows that are read are added tokens, so that these rows rise, and are as many as the
    # tokens only if they are the tokens: a trunk tells from their number which ones it has.
    padded_read = round_up(read, parts)
    tokens = round_up(nodes + padded_read - read, parts)
    if read == nodes:
        padded_read = tokens
    paths, candidates = forest.path_edges.shape[0], forest.num_candidates
    # A padding candidate's path should not grow long: a kernel walks along it.
    least = candidates + math.ceil(paths / 8)
    # Q's heads run over all candidates. These rise with the tokens: in 300 batches of 64 of the
    # demo, and in 60 of 256 of playground/full, no more sizes were recorded than by powers of two.
    padded_candidates = round_up(least, parts) if leaves else power_of_two(least)
    columns = forest.mask.shape[1]
    encoder = 0 if forest.encoder_ids is None else round_up(forest.encoder_ids.shape[0], parts)
    return Sizes(
        tokens=tokens,
        read=padded_read,
        heads=round_up(heads, parts) if leaves else padded_read,
        leaves=leaves,
        path_edges=power_of_two(paths + padded_candidates - candidates),
        candidates=padded_candidates,
        rows=power_of_two(forest.num_rows) if rows is None else rows,
        columns=power_of_two(columns),
        encoder_tokens=encoder,
        longest=_longest(forest),
        prefix=forest.plan.prefix,
        # As many rows as there are candidates, and as many as the forest itself has.
        reencoded=None if forest.reencoded is None else padded_sizes(forest.reencoded, parts=parts),
        taken=None if forest.taken is None else padded_sizes(forest.taken, rows=rows, parts=parts),
    )


def _longest(forest: Forest) -> tuple[int, int]:
    if forest.cross_plan is None or forest.cross_plan.longest is None:
        return 0, 0
    tree, prompt = (power_of_two(max(n, _TREE_TOKENS)) for n in forest.cross_plan.longest)
    return tree, prompt


def holds(sizes: Sizes, forest: Forest, wanted: Sizes) -> bool:
    """Whether a forest fits into `sizes` and wastes little there, compared with the sizes that it
    would choose, `wanted`."""
    nodes, paths = forest.ids.shape[0], forest.path_edges.shape[0]
    read = forest.read.shape[0] if sizes.leaves else forest.head_rows.shape[0]
    more_candidates = sizes.candidates - forest.num_candidates
    alike = ("leaves", "prefix", "rows")
    costly = ("tokens", "read", "heads", "encoder_tokens")
    return (
        _hold(sizes.reencoded, forest.reencoded, wanted.reencoded)
        and _hold(sizes.taken, forest.taken, wanted.taken)
        and all(getattr(sizes, name) == getattr(wanted, name) for name in alike)
        and all(getattr(sizes, name) <= 1.3 * getattr(wanted, name) for name in costly)
        and sizes.read >= read
        and sizes.tokens >= nodes + sizes.read - read
        and (sizes.read == sizes.tokens) == (read == nodes)
        and sizes.heads >= forest.head_rows.shape[0]
        and sizes.encoder_tokens >= (0 if forest.encoder_ids is None else len(forest.encoder_ids))
        and all(a >= b for a, b in zip(sizes.longest, wanted.longest, strict=True))
        and sizes.columns >= forest.mask.shape[1]
        and more_candidates >= 0
        # A padding candidate has at least one edge, and few.
        and more_candidates <= sizes.path_edges - paths <= 16 * more_candidates
    )


def _hold(sizes: Sizes | None, forest: Forest | None, wanted: Sizes | None) -> bool:
    """`holds`, of parts that there are or are not."""
    if sizes is None or forest is None or wanted is None:
        return sizes is None and forest is None
    return holds(sizes, forest, wanted)


def flat_length(sizes: Sizes) -> int:
    """Numbers of int64 that hold a padded forest."""
    inner = sum(flat_length(part) for part in (sizes.reencoded, sizes.taken) if part is not None)
    return _own_length(sizes) + inner


def _own_length(sizes: Sizes) -> int:
    """Without the forests inside it, which lie behind."""
    return sum(-(-length // _ALIGN) * _ALIGN for length in _lengths(sizes).values())


def _inner(flat: Tensor, sizes: Sizes) -> dict[str, tuple[Tensor, Sizes]]:
    """The forests inside a padded one: where each lies, and its sizes."""
    found, begin = {}, _own_length(sizes)
    for name, part in (("reencoded", sizes.reencoded), ("taken", sizes.taken)):
        if part is not None:
            end = begin + flat_length(part)
            found[name] = flat[begin:end], part
            begin = end
    return found


def write_padded(flat: Tensor, forest: Forest, sizes: Sizes) -> None:
    """Write a forest, padded, to `flat`, int64 [flat_length(sizes)]; both on the CPU.

    What is added: trees of tokens that see themselves alone; edges, and candidates of these in the
    added trees; rows and columns without candidates. Added edges, leaves and head rows repeat those
    that are there: a GPU adds up the gradients of equal indices one by one, though they are zeros.
    """
    at = _parts(flat.numpy(), sizes)  # NumPy's small assignments take a third of torch's time
    plan, candidates = forest.plan, forest.num_candidates
    nodes, paths = len(forest.ids), len(forest.path_edges)
    read = forest.read if sizes.leaves else forest.read[forest.head_rows]
    assert plan.end is not None

    def put(name: str, values: Tensor, rest: npt.NDArray[np.int64] | int = 0) -> None:
        part, count = at[name], len(values)
        part[:count] = values.numpy()
        part[count:] = rest

    def put_again(name: str, values: Tensor) -> None:
        put(name, values, np.resize(values.numpy(), len(at[name]) - len(values)))

    def spread(start: int, stop: int, parts: int) -> npt.NDArray[np.int64]:
        """Where equal parts of [start, stop) end."""
        return start + np.arange(1, parts + 1) * (stop - start) // parts

    trees, more_candidates = sizes.trees - plan.trees, sizes.candidates - candidates
    put("ids", forest.ids)
    put("pos", forest.pos)
    put("end", plan.end, np.arange(nodes + 1, sizes.tokens + 1))
    at["end"][: sizes.prefix] = sizes.tokens  # padding continues it too
    put("tree_start", plan.q_start, spread(nodes, sizes.tokens, trees))
    put("read", read, np.arange(nodes, nodes + sizes.read - len(read)))
    if sizes.leaves:
        assert forest.leaf is not None
        put_again("head_rows", forest.head_rows)
        put_again("leaf", forest.leaf)
    put_again("edge_row", forest.edge_row)
    put_again("edge_token", forest.edge_token)
    put("path_offsets", forest.path_offsets, spread(paths, sizes.path_edges, more_candidates))
    put("path_edges", forest.path_edges, np.arange(paths, sizes.path_edges))
    put("candidate_offsets", forest.candidate_offsets, spread(candidates, sizes.candidates, trees))
    rows, columns = forest.mask.shape
    for name, values in (("table", forest.table), ("mask", forest.mask)):
        square = at[name].reshape(sizes.rows, sizes.columns)
        square[:] = 0
        square[:rows, :columns] = values.numpy()
    if forest.encoder_ids is not None:
        encoder, count = forest.encoder_plan, len(forest.encoder_ids)
        assert encoder is not None
        assert encoder.q_pos is not None
        put("encoder_ids", forest.encoder_ids)
        put("encoder_pos", encoder.q_pos)
        put("encoder_start", encoder.q_start, spread(count, sizes.encoder_tokens, trees))
    if forest.taken_column is not None:
        put("taken_column", forest.taken_column)
    for name, (part, inner) in _inner(flat, sizes).items():
        write_padded(part, getattr(forest, name), inner)


def forest_over(flat: Tensor, sizes: Sizes) -> Forest:
    """The padded forest whose arrays `flat` holds, as `write_padded` left them.

    Its plans have nothing cached: what is computed from it is computed from the arrays. `longest`
    is an upper bound.
    """
    at = _parts(flat, sizes)
    narrow = {name: at[name].int() for name in ("pos", "end", "tree_start")}
    inner = {name: forest_over(*part) for name, part in _inner(flat, sizes).items()}
    encoder: dict[str, Any] = {}
    if sizes.encoder_tokens:
        start, count = at["encoder_start"].int(), sizes.encoder_tokens
        encoder = {
            "encoder_ids": at["encoder_ids"],
            "encoder_plan": plan_segments(start, count, q_pos=at["encoder_pos"].int()),
            "cross_plan": plan_segments(
                narrow["tree_start"], sizes.tokens, start, count, longest=sizes.longest
            ),
        }
    return Forest(
        ids=at["ids"],
        pos=at["pos"],
        longest=sizes.tokens,
        plan=plan_forest(
            narrow["end"], narrow["tree_start"], prefix=sizes.prefix, pos=narrow["pos"]
        ),
        read=at["read"],
        head_rows=at["head_rows"] if sizes.leaves else torch.arange(sizes.read, device=flat.device),
        edge_row=at["edge_row"],
        edge_token=at["edge_token"],
        path_offsets=at["path_offsets"],
        path_edges=at["path_edges"],
        candidate_offsets=at["candidate_offsets"],
        leaf=at["leaf"] if sizes.leaves else None,
        table=at["table"].view(sizes.rows, sizes.columns),
        mask=at["mask"].view(sizes.rows, sizes.columns) != 0,
        reencoded=inner.get("reencoded"),
        taken=inner.get("taken"),
        taken_column=at.get("taken_column"),
        **encoder,
    )


def pad_forest(forest: Forest, sizes: Sizes | None = None) -> Forest:
    """A forest on the CPU, padded: the same scores in its first rows and columns. By default to
    `padded_sizes` without what only a critic reads."""
    sizes = sizes or padded_sizes(forest)
    flat = torch.empty(flat_length(sizes), dtype=torch.int64, device="cpu")
    write_padded(flat, forest, sizes)
    return forest_over(flat, sizes)


def _lengths(sizes: Sizes) -> dict[str, int]:
    """The arrays of a padded forest in their order in memory."""
    lengths = {
        "ids": sizes.tokens,
        "pos": sizes.tokens,
        "end": sizes.tokens,
        "tree_start": sizes.trees + 1,
        "read": sizes.read,
        "edge_row": sizes.path_edges,
        "edge_token": sizes.path_edges,
        "path_offsets": sizes.candidates + 1,
        "path_edges": sizes.path_edges,
        "candidate_offsets": sizes.trees + 1,
        "table": sizes.rows * sizes.columns,
        "mask": sizes.rows * sizes.columns,
    }
    if sizes.leaves:
        lengths["head_rows"] = sizes.heads
        lengths["leaf"] = sizes.candidates
    if sizes.encoder_tokens:
        lengths["encoder_ids"] = sizes.encoder_tokens
        lengths["encoder_pos"] = sizes.encoder_tokens
        lengths["encoder_start"] = sizes.trees + 1
    if sizes.taken is not None:
        lengths["taken_column"] = sizes.rows
    return lengths


def _parts(flat: Any, sizes: Sizes) -> dict[str, Any]:
    """Views of the arrays, of the tensor or NumPy array that holds them."""
    found, begin = {}, 0
    for name, length in _lengths(sizes).items():
        found[name] = flat[begin : begin + length]
        begin += -(-length // _ALIGN) * _ALIGN
    return found
