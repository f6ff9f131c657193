"""Where the trees of a packed prefix forest lie: built once a batch, shared by every layer.

A pack is one row of T tokens in depth-first preorder. `tree_start` [P + 1] cuts it into P trees,
`end[j]` is one past the last descendant of token j, and tokens [0, prefix) may be a chain that all
trees continue. Token i sees key j when `j <= i < end[j]`. A plan without `end` describes P pairs
of segments instead, each query segment seeing the whole of its key segment (encoder
self-attention, cross-attention).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

# Trees of at least this many tokens run alone on the CPU: slices need no copy and no padding.
# Measured there: 16 trees of 170 tokens, alone 20.6 ms, padded 16.0 ms without its gathers.
_ALONE_TOKENS = 96
_BUCKET_TREES = 64


@dataclass(frozen=True)
class Bucket:
    """Trees that one padded call serves: rows [N, Lq] and [N, Lk], or one tree as slices."""

    q_lens: tuple[int, ...]
    k_lens: tuple[int, ...]
    q_from: tuple[int, ...]
    k_from: tuple[int, ...]
    prefix: int  # keys [0, prefix) that every query of the bucket sees
    trunk: int = 0  # leading tokens of a tree alone that form a chain, if worth a causal call

    @property
    def q_len(self) -> int:
        return max(self.q_lens)

    @property
    def k_len(self) -> int:
        return max(self.k_lens)

    @property
    def alone(self) -> bool:
        return len(self.q_lens) == 1

    def rows(self, side: str, device: torch.device) -> torch.Tensor:
        """int64 [N, L]: the token of each padded row; a pad row repeats its tree's first token."""
        lens, begin = (self.q_lens, self.q_from) if side == "q" else (self.k_lens, self.k_from)
        slot = torch.arange(max(lens), device="cpu").expand(len(lens), -1)
        inside = slot < _on_host(lens)[:, None]
        return (_on_host(begin)[:, None] + slot * inside).to(device)

    def tokens(self, side: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(token int64 [n], flat padded row int64 [n]) of the rows that are not padding."""
        lens, begin = (self.q_lens, self.q_from) if side == "q" else (self.k_lens, self.k_from)
        width = max(lens)
        slot = torch.arange(width, device="cpu").expand(len(lens), -1)
        inside = (slot < _on_host(lens)[:, None]).flatten()
        token = (_on_host(begin)[:, None] + slot).flatten()[inside]
        return token.to(device), inside.nonzero().squeeze(1).to(device)


@dataclass(eq=False)
class AttentionPlan:
    """The trees (or segment pairs) of a pack. Make one with `plan_forest` or `plan_segments`.

    Fields: q_start, k_start int32 [P + 1] token offsets (the same tensor for a forest);
    q_total, k_total tokens; end int32 [T] or None (segments); prefix tokens shared by all trees;
    q_pos, k_pos int32 [T] depths, needed with a bias table; q_node int32 [Tq], the tokens that are
    queries, where not all of them are (`only`); longest: the most queries and the most keys that a
    segment has, or more, where the host knows.
    """

    q_start: torch.Tensor
    k_start: torch.Tensor
    q_total: int
    k_total: int
    end: torch.Tensor | None = None
    prefix: int = 0
    q_pos: torch.Tensor | None = None
    k_pos: torch.Tensor | None = None
    q_node: torch.Tensor | None = None
    longest: tuple[int, int] | None = None
    _cache: dict[object, object] = field(default_factory=dict, repr=False)

    @property
    def trees(self) -> int:
        return self.q_start.shape[0] - 1

    def only(self, tokens: torch.Tensor) -> AttentionPlan:
        """The plan of a forest for the queries of these tokens alone, int64 [R], rising; none of
        them in the shared prefix."""
        if self.end is None or self.q_node is not None:
            raise ValueError("only a forest of which all tokens are queries can leave some out")
        return AttentionPlan(
            q_start=torch.searchsorted(tokens, self.k_start.long()).int(),
            k_start=self.k_start,
            q_total=tokens.shape[0],
            k_total=self.k_total,
            end=self.end,
            prefix=self.prefix,
            q_pos=None if self.q_pos is None else self.q_pos[tokens],
            k_pos=self.k_pos,
            q_node=tokens.int(),
        )

    def tiles(self, side: str, block: int) -> torch.Tensor:
        """int32 [N, 4], a row per tile of at most `block` rows of one tree, made on the device.

        side "q": (first query, one past the tree's queries, first key, one past the tree's keys);
        side "k": the same with queries and keys swapped, trees only (the prefix's keys are seen by
        everything and are reduced on their own). N is an upper bound that needs no
        synchronisation; surplus rows are zeros, which kernels read as "nothing to do".
        """
        key = ("tiles", side, block)
        if key not in self._cache:
            self._cache[key] = self._make_tiles(side, block)
        return self._cache[key]  # type: ignore[return-value]

    def _make_tiles(self, side: str, block: int) -> torch.Tensor:
        own, other = (self.q_start, self.k_start) if side == "q" else (self.k_start, self.q_start)
        total = self.q_total if side == "q" else self.k_total
        if self.prefix and side == "q":  # the prefix's queries are one more tree, of prefix keys
            own, other = (torch.cat([x.new_zeros(1), x]) for x in (own, other))
        own, other = own.long(), other.long()
        tile_end = torch.div(own.diff() + block - 1, block, rounding_mode="floor").cumsum(0)
        count = -(-total // block) + own.shape[0] - 1
        index = torch.arange(count, device=own.device)
        tree = torch.searchsorted(tile_end, index, right=True).clamp_(max=own.shape[0] - 2)
        first_tile = torch.nn.functional.pad(tile_end, (1, 0))[tree]
        begin = own[tree] + (index - first_tile) * block
        table = torch.stack([begin, own[tree + 1], other[tree], other[tree + 1]], dim=1)
        return (table * (index < tile_end[-1:])[:, None]).int()

    def buckets(self) -> list[Bucket]:
        """The calls of the torch path; reads the offsets on the host, once per plan."""
        if "buckets" not in self._cache:
            self._cache["buckets"] = self._make_buckets()
        return self._cache["buckets"]  # type: ignore[return-value]

    def _make_buckets(self) -> list[Bucket]:
        q_start, k_start = self.q_start.tolist(), self.k_start.tolist()
        spans = [
            (k1 - k0, q1 - q0, q0, k0)
            for q0, q1, k0, k1 in zip(q_start, q_start[1:], k_start, k_start[1:], strict=False)
            if q1 > q0 and k1 > k0  # without keys there is nothing to see: those rows stay zero
        ]
        cuda = self.q_start.is_cuda
        groups: list[list[tuple[int, int, int, int]]] = []
        for span in sorted(spans):
            keys, queries = span[:2]
            group = groups[-1] if groups else []
            fits = group and (
                cuda  # launches cost more than padding there
                or (
                    max(keys, queries) < _ALONE_TOKENS
                    and len(group) < _BUCKET_TREES
                    and keys <= 1.25 * group[0][0] + 4
                    and queries <= 1.25 * min(g[1] for g in group) + 4
                    and 1.25 * queries + 4 >= max(g[1] for g in group)
                )
            )
            if fits:
                group.append(span)
            else:
                groups.append([span])
        made = [
            Bucket(
                q_lens=tuple(g[1] for g in group),
                k_lens=tuple(g[0] for g in group),
                q_from=tuple(g[2] for g in group),
                k_from=tuple(g[3] for g in group),
                prefix=self.prefix,
                trunk=self._trunk(group[0]) if len(group) == 1 else 0,
            )
            for group in groups
        ]
        if self.prefix:
            made.insert(0, Bucket((self.prefix,), (self.prefix,), (0,), (0,), prefix=0))
        return made

    def _trunk(self, span: tuple[int, int, int, int]) -> int:
        """Tokens before a tree's first branching, where a causal call of their own pays."""
        keys, _, begin, _ = span
        if self.end is None or self.end.is_cuda or self.prefix or keys < _ALONE_TOKENS:
            return 0
        last = begin + keys
        chain = int((self.end[begin:last] == last).int().cumprod(0).sum())
        return chain if chain >= _ALONE_TOKENS // 2 else 0

    def index_rows(self, bucket: int, side: str) -> torch.Tensor:
        """`Bucket.rows` on the plan's device, kept."""
        key = ("rows", bucket, side)
        if key not in self._cache:
            self._cache[key] = self.buckets()[bucket].rows(side, self.q_start.device)
        return self._cache[key]  # type: ignore[return-value]

    def index_tokens(self, bucket: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """`Bucket.tokens` on the plan's device, kept."""
        key = ("tokens", bucket, side)
        if key not in self._cache:
            self._cache[key] = self.buckets()[bucket].tokens(side, self.q_start.device)
        return self._cache[key]  # type: ignore[return-value]

    def slots(self, side: str) -> torch.Tensor | None:
        """int64 [T]: each token's row among the padded rows of the only bucket, so that padding is
        undone by one gather; None where that is not how the plan is laid out."""
        key = ("slots", side)
        if key not in self._cache:
            total = self.q_total if side == "q" else self.k_total
            slots = None
            if len(self.buckets()) == 1 and not self.buckets()[0].alone:
                token, flat = self.index_tokens(0, side)
                if token.shape[0] == total:
                    slots = torch.empty_like(token)
                    slots[token] = flat
            self._cache[key] = slots
        return self._cache[key]  # type: ignore[return-value]

    def covers_all_queries(self) -> bool:
        """Whether every query lies in some bucket, so that an output needs no zero fill."""
        return sum(sum(b.q_lens) for b in self.buckets()) == self.q_total

    def mask(self, bucket: int, dtype: torch.dtype, *, whole: bool = False) -> torch.Tensor | None:
        """Additive mask [N, 1, Lq, prefix + Lk] of one bucket (0 or -inf), or None if all is seen;
        of the queries after the bucket's trunk, unless `whole`.

        A padding query sees the first key: its output is dropped, and must not be NaN.
        """
        skip = 0 if whole else self.buckets()[bucket].trunk
        key = ("mask", bucket, dtype, skip)
        if key not in self._cache:
            self._cache[key] = self._make_mask(bucket, dtype, skip)
        return self._cache[key]  # type: ignore[return-value]

    def _make_mask(self, index: int, dtype: torch.dtype, skip: int) -> torch.Tensor | None:
        bucket = self.buckets()[index]
        if self.end is None and len(set(bucket.k_lens)) == 1:
            return None
        device = self.q_start.device
        k_lens = torch.tensor(bucket.k_lens, device=device)[:, None, None]
        slot = torch.arange(bucket.k_len, device=device)
        seen = (slot < k_lens).expand(-1, bucket.q_len - skip, -1)
        if self.end is not None:
            query = self.index_rows(index, "q")[:, skip:, None]
            own = self.index_rows(index, "k")
            end = self.end[own].long()[:, None, :]
            seen = seen & (own[:, None, :] <= query) & (query < end)
        if bucket.prefix:
            seen = torch.nn.functional.pad(seen, (bucket.prefix, 0), value=True)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device)
        mask.masked_fill_(~seen, float("-inf"))
        return mask[:, None]

    def bias_index(self, bucket: int, radius: int) -> torch.Tensor:
        """int64 [N, Lq, prefix + Lk]: the bias table's column `clamp(q_pos - k_pos + radius)`."""
        key = ("bias", bucket, radius)
        if key not in self._cache:
            here = self.buckets()[bucket]
            if self.q_pos is None or self.k_pos is None:
                raise ValueError("a bias needs the tokens' depths: pass pos to the plan")
            q_pos = self.q_pos[self.index_rows(bucket, "q")].long()
            k_pos = self.k_pos[self.index_rows(bucket, "k")].long()
            if here.prefix:
                shared = self.k_pos[: here.prefix].long().expand(k_pos.shape[0], -1)
                k_pos = torch.cat([shared, k_pos], dim=1)
            offset = q_pos[:, :, None] - k_pos[:, None, :] + radius
            self._cache[key] = offset.clamp_(0, 2 * radius)
        return self._cache[key]  # type: ignore[return-value]


def plan_forest(
    end: torch.Tensor,
    tree_start: torch.Tensor,
    *,
    prefix: int = 0,
    pos: torch.Tensor | None = None,
) -> AttentionPlan:
    """Plan self-attention over a packed prefix forest.

    Args: end int32 [T], with end[i] > i (a padding token has end[i] = i + 1 in a tree of its own,
    or of other padding); tree_start int32 [P + 1] from `prefix` to T; prefix: tokens [0, prefix)
    form a chain that every tree continues (their `end` is T); pos int32 [T] depths, for a bias.
    On the CPU the arrays are checked; on a GPU that would cost a synchronisation. ValueError.
    """
    total = _vector(end, "end").shape[0]
    _vector(tree_start, "tree_start")
    if pos is not None and pos.shape != end.shape:
        raise ValueError(f"pos has shape {tuple(pos.shape)}, end {tuple(end.shape)}: need equal")
    if not end.is_cuda:
        _check_offsets(tree_start, prefix, total, "tree_start")
        index = torch.arange(total, device=end.device)
        if total and not bool(((end > index) & (end <= total)).all()):
            raise ValueError(f"end must satisfy i < end[i] <= {total} for every token i")
        if prefix and not bool((end[:prefix] == total).all()):
            raise ValueError(f"end[:{prefix}] (the shared prefix) must be {total} throughout")
    return AttentionPlan(tree_start, tree_start, total, total, end, prefix, pos, pos)


def plan_segments(
    q_start: torch.Tensor,
    q_total: int,
    k_start: torch.Tensor | None = None,
    k_total: int | None = None,
    *,
    q_pos: torch.Tensor | None = None,
    k_pos: torch.Tensor | None = None,
    longest: tuple[int, int] | None = None,
) -> AttentionPlan:
    """Plan attention of query segment p to the whole of key segment p, p in [0, P).

    Args: q_start, k_start int32 [P + 1] from 0 to q_total and k_total (the total numbers of
    tokens, known to the host); keys default to the queries' segments (encoder self-attention);
    q_pos, k_pos int32 positions, for a bias; longest: the most queries and keys of a segment, or
    more, which FlashAttention needs. A query whose key segment is empty gets zeros.
    """
    if k_start is None:
        k_start, k_total, k_pos = q_start, q_total, q_pos if k_pos is None else k_pos
    if k_total is None:
        raise ValueError("k_start was given without k_total, the number of key tokens")
    if _vector(q_start, "q_start").shape != _vector(k_start, "k_start").shape:
        raise ValueError(
            f"q_start has {q_start.shape[0]} entries, k_start {k_start.shape[0]}: need one key "
            "segment per query segment"
        )
    if not q_start.is_cuda:
        _check_offsets(q_start, 0, q_total, "q_start")
        _check_offsets(k_start, 0, k_total, "k_start")
    return AttentionPlan(
        q_start, k_start, q_total, k_total, q_pos=q_pos, k_pos=k_pos, longest=longest
    )


def _on_host(numbers: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(numbers, device="cpu")


def _vector(x: torch.Tensor, name: str) -> torch.Tensor:
    if x.ndim != 1 or x.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} is {x.dtype} {tuple(x.shape)}: need an int32 vector")
    return x


def _check_offsets(offsets: torch.Tensor, first: int, last: int, name: str) -> None:
    values = offsets.tolist()
    rising = all(a <= b for a, b in zip(values, values[1:], strict=False))
    if not values or values[0] != first or values[-1] != last or not rising:
        got = f"{values[:3]} .. {values[-1:]}"
        raise ValueError(f"{name} must rise from {first} to {last}, got {got}")
