// Prefix-forest packing: prompts and the tries of their candidate actions, as one row of tokens.
//
// Every distinct (prompt, candidate set) of a batch becomes one tree: a chain (the prompt of a
// causal model, the start token of a decoder) followed by the trie of the candidates, in
// depth-first preorder. Node i carries ids[i], pos[i] (its depth) and end[i] (one past its last
// descendant), so that key j is visible to query i exactly if j <= i < end[j].
//
// Pure C++20: no Python, no torch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace sacglam::forest {

// The trie of one candidate set. Nodes are in preorder; node -1 is the end of the chain.
struct Trie {
  std::vector<std::int32_t> token;         // [N]
  std::vector<std::int32_t> parent;        // [N] index of the parent, -1 for the chain's end
  std::vector<std::int32_t> depth;         // [N] 1 for a child of the chain's end
  std::vector<std::int32_t> subtree;       // [N] nodes in the subtree, itself included
  std::vector<std::int32_t> leaf;          // [K] node of each candidate's last token
  std::vector<std::int32_t> path_offsets;  // [K + 1]
  std::vector<std::int32_t> path;          // nodes of each candidate, root first
  std::int32_t max_depth = 0;
  std::int32_t nodes_without_leaves = 0;  // nodes that have children

  [[nodiscard]] std::size_t candidates() const { return leaf.size(); }
  [[nodiscard]] std::size_t nodes() const { return token.size(); }
  [[nodiscard]] bool has_children(std::size_t node) const { return subtree[node] > 1; }
};

template <class Range>
std::size_t hash_bytes(const Range& values) {
  const std::string_view bytes(reinterpret_cast<const char*>(values.data()),
                               values.size() * sizeof(*values.data()));
  return std::hash<std::string_view>{}(bytes);
}

// Builds the trie of candidates given as concatenated token ids. Throws std::invalid_argument for
// an empty set, an empty candidate, or two equal candidates.
inline Trie build_trie(std::span<const std::int32_t> tokens,
                       std::span<const std::int64_t> offsets) {
  const std::size_t count = offsets.empty() ? 0 : offsets.size() - 1;
  if (count == 0) throw std::invalid_argument("a candidate set needs at least one candidate");
  if (offsets.front() != 0 || offsets.back() != static_cast<std::int64_t>(tokens.size())) {
    throw std::invalid_argument("candidate offsets must start at 0 and end at the token count");
  }
  const auto length = [&](std::size_t c) {
    return static_cast<std::size_t>(offsets[c + 1] - offsets[c]);
  };
  const auto at = [&](std::size_t c, std::size_t depth) {
    return tokens[static_cast<std::size_t>(offsets[c]) + depth];
  };
  for (std::size_t c = 0; c < count; ++c) {
    if (offsets[c + 1] <= offsets[c]) {
      throw std::invalid_argument("candidate " + std::to_string(c) + " has no tokens");
    }
  }
  // Sorted candidates visit the trie in preorder, whatever order the set was given in.
  std::vector<std::size_t> order(count);
  for (std::size_t c = 0; c < count; ++c) order[c] = c;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const auto first = tokens.begin();
    return std::lexicographical_compare(first + offsets[a], first + offsets[a + 1],
                                        first + offsets[b], first + offsets[b + 1]);
  });

  Trie trie;
  std::vector<std::vector<std::int32_t>> paths(count);
  std::vector<std::int32_t> previous;  // nodes on the path of the candidate before this one
  std::size_t previous_candidate = 0;
  for (std::size_t k = 0; k < count; ++k) {
    const std::size_t c = order[k];
    std::size_t shared = 0;
    if (k > 0) {
      const std::size_t most = std::min(length(c), length(previous_candidate));
      while (shared < most && at(c, shared) == at(previous_candidate, shared)) ++shared;
      if (shared == length(c) && shared == length(previous_candidate)) {
        throw std::invalid_argument("candidates " + std::to_string(previous_candidate) + " and " +
                                    std::to_string(c) + " have the same tokens");
      }
    }
    previous.resize(shared);
    for (std::size_t d = shared; d < length(c); ++d) {
      trie.parent.push_back(previous.empty() ? -1 : previous.back());
      previous.push_back(static_cast<std::int32_t>(trie.token.size()));
      trie.token.push_back(at(c, d));
      trie.depth.push_back(static_cast<std::int32_t>(d) + 1);
    }
    trie.max_depth = std::max(trie.max_depth, static_cast<std::int32_t>(length(c)));
    paths[c] = previous;
    previous_candidate = c;
  }
  trie.subtree.assign(trie.nodes(), 1);
  for (std::size_t n = trie.nodes(); n-- > 0;) {
    if (trie.parent[n] >= 0)
      trie.subtree[static_cast<std::size_t>(trie.parent[n])] += trie.subtree[n];
  }
  for (std::size_t n = 0; n < trie.nodes(); ++n) trie.nodes_without_leaves += trie.has_children(n);
  trie.path_offsets.push_back(0);
  for (std::size_t c = 0; c < count; ++c) {
    trie.leaf.push_back(paths[c].back());
    trie.path.insert(trie.path.end(), paths[c].begin(), paths[c].end());
    trie.path_offsets.push_back(static_cast<std::int32_t>(trie.path.size()));
  }
  return trie;
}

// A candidate set and its trie. It never changes, so that batches and threads may share it.
class CandidateSet {
 public:
  // Candidates as concatenated token ids and offsets [K + 1]; throws as build_trie does.
  CandidateSet(std::span<const std::int32_t> tokens, std::span<const std::int64_t> offsets)
      : trie_(build_trie(tokens, offsets)),
        tokens_(tokens.begin(), tokens.end()),
        offsets_(offsets.begin(), offsets.end()),
        hash_(hash_bytes(tokens_) * 31 + hash_bytes(offsets_)) {}

  [[nodiscard]] const Trie& trie() const { return trie_; }
  [[nodiscard]] const std::vector<std::int32_t>& tokens() const { return tokens_; }
  [[nodiscard]] const std::vector<std::int64_t>& offsets() const { return offsets_; }
  [[nodiscard]] std::size_t hash() const { return hash_; }
  [[nodiscard]] bool operator==(const CandidateSet& other) const {
    return this == &other ||
           (hash_ == other.hash_ && tokens_ == other.tokens_ && offsets_ == other.offsets_);
  }

 private:
  Trie trie_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::int64_t> offsets_;
  std::size_t hash_;
};

// The packed batch. T nodes, P trees, B rows of the batch, E edges, C candidates over all trees.
struct Packed {
  std::vector<std::int64_t> ids, pos, end;             // [T]
  std::vector<std::int64_t> tree_start;                // [P + 1] first node of each tree
  std::vector<std::int64_t> head_rows;                 // [R] nodes whose next-token law is needed
  std::vector<std::int64_t> edge_row, edge_token;      // [E] index into head_rows; token
  std::vector<std::int64_t> path_offsets, path_edges;  // [C + 1], [*] edges of each candidate
  std::vector<std::int64_t> leaf;                      // [C] node of the last token (empty: elided)
  std::vector<std::int64_t> candidate_offsets;         // [P + 1]
  std::vector<std::int64_t> tree_of_row;               // [B]
  std::vector<std::int64_t> encoder_ids;               // encoder-decoder: prompts of the trees
  std::vector<std::int64_t> encoder_start;             // [P + 1]
  std::int64_t prefix = 0;                             // leading nodes that every tree continues
  std::int64_t max_candidates = 0;
};

class Packer {
 public:
  // decoder_start < 0: a causal model, whose chain is the prompt. Otherwise the chain is that one
  // token and the prompt goes to the encoder.
  explicit Packer(std::int64_t decoder_start) : decoder_start_(decoder_start) {}

  // Packs B prompts (concatenated ids, offsets [B + 1]) with their sets [B]. Equal (prompt, set)
  // pairs become one tree. keep_leaves: run last tokens too (the critic reads their hidden state);
  // without it, nodes that have no children are left out. rows: which of the B prompts to pack, in
  // this order. prefix: that many leading tokens of a causal model's prompts are packed once for
  // all trees, if all prompts have them in common and go on after them; else none are.
  [[nodiscard]] Packed pack(std::span<const std::int32_t> prompts,
                            std::span<const std::int64_t> offsets,
                            std::span<const CandidateSet* const> sets,
                            std::span<const std::int64_t> rows, bool keep_leaves,
                            std::int64_t prefix) const {
    check(prompts, offsets, sets, rows);
    Packed out;
    if (shares(prompts, offsets, rows, prefix)) {
      out.prefix = prefix;
      const auto first = slice(prompts, offsets, static_cast<std::size_t>(rows.front()));
      for (std::int64_t k = 0; k < prefix; ++k) {
        out.ids.push_back(first[static_cast<std::size_t>(k)]);
        out.pos.push_back(k);
      }
      out.end.resize(static_cast<std::size_t>(prefix));  // known when all trees are
    }
    out.tree_start.push_back(out.prefix);
    out.candidate_offsets.push_back(0);
    out.path_offsets.push_back(0);
    out.encoder_start.push_back(0);
    // hash of a row that made a tree -> that row and its tree
    std::unordered_multimap<std::size_t, std::pair<std::size_t, std::int64_t>> seen;
    for (const std::int64_t signed_row : rows) {
      const auto row = static_cast<std::size_t>(signed_row);
      const auto prompt = slice(prompts, offsets, row);
      const std::size_t hash = hash_bytes(prompt) * 31 + sets[row]->hash();
      std::int64_t tree = -1;
      for (auto [it, last] = seen.equal_range(hash); it != last; ++it) {
        const auto [other, its_tree] = it->second;
        if (*sets[other] == *sets[row] &&
            std::ranges::equal(prompt, slice(prompts, offsets, other))) {
          tree = its_tree;
          break;
        }
      }
      if (tree < 0) {
        tree = static_cast<std::int64_t>(out.tree_start.size()) - 1;
        seen.emplace(hash, std::pair{row, tree});
        append_tree(out, prompt, sets[row]->trie(), keep_leaves);
      }
      out.tree_of_row.push_back(tree);
    }
    std::fill_n(out.end.begin(), out.prefix, static_cast<std::int64_t>(out.ids.size()));
    return out;
  }

 private:
  static std::span<const std::int32_t> slice(std::span<const std::int32_t> prompts,
                                             std::span<const std::int64_t> offsets,
                                             std::size_t row) {
    return prompts.subspan(static_cast<std::size_t>(offsets[row]),
                           static_cast<std::size_t>(offsets[row + 1] - offsets[row]));
  }

  // Whether all rows' prompts begin with the same `prefix` tokens and are longer. One prompt alone
  // has nobody to share with.
  [[nodiscard]] bool shares(std::span<const std::int32_t> prompts,
                            std::span<const std::int64_t> offsets,
                            std::span<const std::int64_t> rows, std::int64_t prefix) const {
    if (prefix <= 0 || decoder_start_ >= 0 || rows.size() < 2) return false;
    const auto count = static_cast<std::size_t>(prefix);
    const auto first = slice(prompts, offsets, static_cast<std::size_t>(rows.front()));
    return std::ranges::all_of(rows, [&](std::int64_t row) {
      const auto prompt = slice(prompts, offsets, static_cast<std::size_t>(row));
      return prompt.size() > count && std::ranges::equal(prompt.first(count), first.first(count));
    });
  }

  void check(std::span<const std::int32_t> prompts, std::span<const std::int64_t> offsets,
             std::span<const CandidateSet* const> sets, std::span<const std::int64_t> rows) const {
    for (const std::int64_t row : rows) {
      if (row < 0 || static_cast<std::size_t>(row) >= sets.size()) {
        throw std::invalid_argument("row " + std::to_string(row) + " is not in the batch of " +
                                    std::to_string(sets.size()));
      }
    }
    if (offsets.size() != sets.size() + 1) {
      throw std::invalid_argument("prompt offsets must have one entry more than there are sets");
    }
    if (offsets.front() != 0 || offsets.back() != static_cast<std::int64_t>(prompts.size())) {
      throw std::invalid_argument("prompt offsets must start at 0 and end at the token count");
    }
    for (std::size_t row = 0; row < sets.size(); ++row) {
      if (offsets[row + 1] <= offsets[row]) {
        throw std::invalid_argument("prompt " + std::to_string(row) + " is empty");
      }
      if (sets[row] == nullptr) {
        throw std::invalid_argument("prompt " + std::to_string(row) + " has no candidate set");
      }
    }
  }

  void append_tree(Packed& out, std::span<const std::int32_t> prompt, const Trie& trie,
                   bool keep_leaves) const {
    const auto first = static_cast<std::int64_t>(out.ids.size());
    const std::int64_t chain =
        decoder_start_ < 0 ? static_cast<std::int64_t>(prompt.size()) - out.prefix : 1;
    const auto kept = static_cast<std::int64_t>(
        keep_leaves ? trie.nodes() : static_cast<std::size_t>(trie.nodes_without_leaves));
    const std::int64_t last = first + chain + kept;

    for (std::int64_t k = 0; k < chain; ++k) {
      const auto token = static_cast<std::size_t>(out.prefix + k);
      out.ids.push_back(decoder_start_ < 0 ? prompt[token] : decoder_start_);
      out.pos.push_back(out.prefix + k);
      out.end.push_back(last);
    }
    if (decoder_start_ >= 0) {
      out.encoder_ids.insert(out.encoder_ids.end(), prompt.begin(), prompt.end());
      out.encoder_start.push_back(static_cast<std::int64_t>(out.encoder_ids.size()));
    }
    // Where each trie node lies in the row, and which head row predicts its children.
    std::vector<std::int64_t> place(trie.nodes(), -1), head(trie.nodes(), -1);
    const auto root_head = static_cast<std::int64_t>(out.head_rows.size());
    out.head_rows.push_back(first + chain - 1);
    for (std::size_t n = 0; n < trie.nodes(); ++n) {
      if (!keep_leaves && !trie.has_children(n)) continue;
      place[n] = static_cast<std::int64_t>(out.ids.size());
      out.ids.push_back(trie.token[n]);
      out.pos.push_back(out.prefix + chain - 1 + trie.depth[n]);
      if (trie.has_children(n)) {
        head[n] = static_cast<std::int64_t>(out.head_rows.size());
        out.head_rows.push_back(place[n]);
      }
    }
    // end: one past the last kept descendant.
    std::vector<std::int64_t> kept_subtree(trie.nodes());
    for (std::size_t n = trie.nodes(); n-- > 0;) {
      kept_subtree[n] += place[n] >= 0 ? 1 : 0;
      if (trie.parent[n] >= 0)
        kept_subtree[static_cast<std::size_t>(trie.parent[n])] += kept_subtree[n];
    }
    for (std::size_t n = 0; n < trie.nodes(); ++n) {
      if (place[n] >= 0) out.end.push_back(place[n] + kept_subtree[n]);
    }
    const auto first_edge = static_cast<std::int64_t>(out.edge_row.size());
    for (std::size_t n = 0; n < trie.nodes(); ++n) {
      const std::int32_t parent = trie.parent[n];
      out.edge_row.push_back(parent < 0 ? root_head : head[static_cast<std::size_t>(parent)]);
      out.edge_token.push_back(trie.token[n]);
    }
    for (std::size_t c = 0; c < trie.candidates(); ++c) {
      for (std::int32_t k = trie.path_offsets[c]; k < trie.path_offsets[c + 1]; ++k) {
        out.path_edges.push_back(first_edge + trie.path[static_cast<std::size_t>(k)]);
      }
      out.path_offsets.push_back(static_cast<std::int64_t>(out.path_edges.size()));
      if (keep_leaves) out.leaf.push_back(place[static_cast<std::size_t>(trie.leaf[c])]);
    }
    out.tree_start.push_back(last);
    out.candidate_offsets.push_back(out.candidate_offsets.back() +
                                    static_cast<std::int64_t>(trie.candidates()));
    out.max_candidates = std::max(out.max_candidates, static_cast<std::int64_t>(trie.candidates()));
  }

  std::int64_t decoder_start_;
};

}  // namespace sacglam::forest
