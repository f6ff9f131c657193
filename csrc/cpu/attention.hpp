// Attention of one (tree, key head) over packed tokens, at the count of operations that the
// visible pairs need; formulas and symbols as in kernels/forest_attention.py.
//
// Walking a tree in preorder, the stack of open nodes is just what a node sees. It begins with a
// run of consecutive tokens (the prompt), which is scored by whole vectors, and ends with the few
// ancestors inside a trie, which are scored one by one. Included by a level_<isa>.cpp.
#pragma once

#include "kernels.hpp"
#include "lanes.hpp"
#include "products.hpp"

namespace {

using sacglam::cpu::Attention;

constexpr int kWide = 2 * kBlock;  // queries whose shares of a key's gradient are added up first
constexpr int kAhead = 4;          // rows from one that is read to one that is prefetched

inline std::int64_t attention_scratch(const Attention& a, std::int64_t longest) {
  const std::int64_t row = row_floats(a.dim), keys = round_up(longest);
  // By key: k, v (rows and transposed), dk, dv. By query of a block: scores, their gradients and
  // the same of the ancestors, ancestors, q, dO, dq. The stack, positions and biases.
  return keys * (6 * row) + kWide * (5 * keys + 4 * row) + 6 * keys + 8 * kLanes +
         (a.bias != nullptr ? 2 * (4 * keys + 4 * kLanes) : 0);
}

template <int V>  // vectors a padded row
class TreeAttention {
 public:
  using Rows = PaddedRows<V>;
  static constexpr int kRow = Rows::kRow;

  TreeAttention(const Attention& a, std::int64_t task, float* scratch)
      : a_(a),
        tree_(static_cast<std::int32_t>(task / a.kv_heads)),
        kv_head_(static_cast<std::int32_t>(task % a.kv_heads)),
        first_(a.k_start[tree_]),
        length_(a.k_start[tree_ + 1] - first_),
        padded_(round_up(length_)),
        next_(scratch) {
    k_ = take(padded_ * kRow);
    v_ = take(padded_ * kRow);
    k_by_dim_ = take(padded_ * a.dim);
    stack_ = reinterpret_cast<std::int32_t*>(take(padded_));
    for (int b = 0; b < kWide; ++b) {
      p_[b] = take(padded_);
      p_above_[b] = take(padded_);
      above_[b] = reinterpret_cast<std::int32_t*>(take(padded_));
      q_[b] = take(kRow);
    }
    if (a.bias != nullptr) bias_ = take(2 * padded_ + 2 * kLanes);
  }

  void forward() {
    load_keys();
    for_heads<kBlock>([this](const Block& block) { forward_block(block); });
  }

  void backward() {
    v_by_dim_ = take(padded_ * a_.dim);
    dk_ = take(padded_ * kRow);
    dv_ = take(padded_ * kRow);
    for (int b = 0; b < kWide; ++b) {
      ds_[b] = take(padded_);
      ds_above_[b] = take(padded_);
      dq_[b] = take(kRow);
      grad_[b] = take(kRow);
    }
    if (a_.dbias != nullptr) dbias_ = take(2 * padded_ + 2 * kLanes);
    load_keys();
    for (std::int64_t j = 0; j < padded_; ++j) {  // zeros where there is no key
      for (int d = 0; d < a_.dim; ++d) v_by_dim_[d * padded_ + j] = v_[j * kRow + d];
    }
    for (std::int64_t i = 0; i < padded_ * kRow; ++i) dk_[i] = dv_[i] = 0.0F;
    for_heads<kWide>([this](const Block& block) { backward_block(block); });
    store_key_gradients();
  }

 private:
  struct Block {
    int count = 0;
    std::int64_t query[kWide];      // in the pack
    std::int32_t node[kWide];       // in the tree
    std::int32_t run[kWide];        // keys [0, run) of the tree are seen,
    std::int32_t ancestors[kWide];  // and so many of above_[b]
    std::int32_t longest_run = 0;
    int computed() const { return (count + kBlock - 1) / kBlock * kBlock; }
  };

  float* take(std::int64_t floats) {
    float* place = next_;
    next_ += floats;
    return place;
  }

  // x' = x cos + rotate_half(x) sin, and its transpose for gradients.
  void rotate(float* row, std::int64_t token, bool back) const {
    if (a_.cos == nullptr) return;
    const float* cos = a_.cos + token * a_.dim;
    const float* sin = a_.sin + token * a_.dim;
    const int half = a_.dim / 2;
    for (int d = 0; d < half; ++d) {
      const float low = row[d], high = row[d + half];
      if (back) {
        row[d] = low * cos[d] + high * sin[d + half];
        row[d + half] = high * cos[d + half] - low * sin[d];
      } else {
        row[d] = low * cos[d] - high * sin[d];
        row[d + half] = high * cos[d + half] + low * sin[d + half];
      }
    }
  }

  void copy_row(float* to, const float* from) const {
    for (int d = 0; d < a_.dim; ++d) to[d] = from[d];
    for (int d = a_.dim; d < kRow; ++d) to[d] = 0.0F;
  }

  // A head's rows lie a token apart, which processors do not foresee.
  void prefetch(const float* row) const {
    for (int d = 0; d < a_.dim; d += 16) __builtin_prefetch(row + d);
  }

  std::int64_t ahead_of(std::int64_t query) const {
    const std::int64_t last = a_.q_start[tree_ + 1] - 1;
    return query + kAhead < last ? query + kAhead : last;
  }

  void load_keys() {
    for (std::int64_t j = 0; j < padded_; ++j) {
      if (j + kAhead < length_) {
        prefetch(a_.k + (first_ + j + kAhead) * a_.k_token + kv_head_ * a_.k_head);
        prefetch(a_.v + (first_ + j + kAhead) * a_.v_token + kv_head_ * a_.v_head);
      }
      float* k = k_ + j * kRow;
      float* v = v_ + j * kRow;
      if (j >= length_) {
        for (int d = 0; d < kRow; ++d) k[d] = v[d] = 0.0F;
      } else {
        copy_row(k, a_.k + (first_ + j) * a_.k_token + kv_head_ * a_.k_head);
        copy_row(v, a_.v + (first_ + j) * a_.v_token + kv_head_ * a_.v_head);
        rotate(k, first_ + j, false);
      }
      for (int d = 0; d < a_.dim; ++d) k_by_dim_[d * padded_ + j] = k[d];
    }
  }

  template <int width, class Visit>
  void for_heads(const Visit& visit) {
    const int group = a_.heads / a_.kv_heads;
    for (head_ = kv_head_ * group; head_ < (kv_head_ + 1) * group; ++head_) {
      if (a_.bias != nullptr) spread_bias();
      for_blocks<width>(visit);
      if (dbias_ != nullptr) gather_bias_gradient();
    }
  }

  template <int width, class Visit>
  void for_blocks(const Visit& visit) {
    const std::int64_t begin = a_.q_start[tree_], stop = a_.q_start[tree_ + 1];
    Block block;
    std::int32_t depth = 0, run = 0, node = 0;
    for (std::int64_t i = begin; i < stop; ++i) {
      const int b = block.count;
      block.query[b] = i;
      if (a_.end == nullptr) {
        block.node[b] = static_cast<std::int32_t>(i - begin);
        block.run[b] = static_cast<std::int32_t>(length_);
        block.ancestors[b] = 0;
      } else {
        const auto own = static_cast<std::int32_t>(
            (a_.q_node != nullptr ? std::int64_t{a_.q_node[i]} : i) - first_);
        for (; node <= own; ++node) {
          while (depth > 0 && a_.end[first_ + stack_[depth - 1]] <= first_ + node) --depth;
          run = run < depth ? run : depth;
          if (run == depth && node == depth) ++run;
          stack_[depth++] = node;
        }
        block.node[b] = own;
        block.run[b] = run;
        block.ancestors[b] = depth - run;
        for (std::int32_t k = run; k < depth; ++k) above_[b][k - run] = stack_[k];
      }
      if (block.longest_run < block.run[b]) block.longest_run = block.run[b];
      if (++block.count == width || i + 1 == stop) {
        visit(block);
        block.count = 0;
        block.longest_run = 0;
      }
    }
  }

  // ---- T5's bias: one entry per offset j - i, so that a run of keys reads consecutive entries.
  // Where positions are not consecutive along the keys, it is looked up pair by pair.

  void spread_bias() {
    consecutive_ = 1;
    while (consecutive_ < length_ &&
           a_.k_pos[first_ + consecutive_] == a_.k_pos[first_ + consecutive_ - 1] + 1) {
      ++consecutive_;
    }
    const float* table = a_.bias + head_ * (2 * std::int64_t{a_.radius} + 1);
    for (std::int64_t x = 0; x < 2 * padded_; ++x) {  // entry x: key position - query's + padded_
      bias_[x] = table[column(padded_ - x)];
      if (dbias_ != nullptr) dbias_[x] = 0.0F;
    }
    for (std::int64_t x = 2 * padded_; x < 2 * padded_ + 2 * kLanes; ++x) {
      bias_[x] = 0.0F;
      if (dbias_ != nullptr) dbias_[x] = 0.0F;
    }
  }
  std::int64_t column(std::int64_t offset) const {  // offset: query position - key position
    const std::int64_t r = a_.radius;
    return (offset < -r ? -r : offset > r ? r : offset) + r;
  }
  std::int64_t pair_column(std::int64_t query, std::int64_t key) const {
    return column(std::int64_t{a_.q_pos[query]} - a_.k_pos[first_ + key]);
  }
  // Where the entries of the run begin for a query, or -1 if they must be looked up.
  std::int64_t bias_begin(const Block& block, int b) const {
    if (block.run[b] == 0 || block.run[b] > consecutive_) return -1;
    const std::int64_t x = std::int64_t{a_.k_pos[first_]} - a_.q_pos[block.query[b]] + padded_;
    return x >= 0 && x + block.run[b] <= 2 * padded_ ? x : -1;
  }
  void gather_bias_gradient() {
    float* out = bias_part();
    for (std::int64_t x = 0; x < 2 * padded_; ++x) out[column(padded_ - x)] += dbias_[x];
  }
  float* bias_part() const {
    return a_.dbias + (std::int64_t{tree_} * a_.heads + head_) * (2 * std::int64_t{a_.radius} + 1);
  }

  // Scores of the run into p_, and of the ancestors into p_above_, scaled and biased.
  void score(const Block& block) {
    for (int part = 0; part < block.count; part += kBlock) {
      Rows::dots(q_ + part, k_by_dim_, a_.dim, padded_, round_up(block.longest_run),
                 [&](int b, std::int64_t j, Vec s) { store(p_[part + b] + j, s * a_.scale); });
    }
    for (int b = 0; b < block.count; ++b) {
      for (std::int32_t k = 0; k < block.ancestors[b]; ++k) {
        p_above_[b][k] = a_.scale * Rows::dot(q_[b], k_ + std::int64_t{above_[b][k]} * kRow);
      }
      if (a_.bias != nullptr) add_bias(block, b);
    }
  }
  void add_bias(const Block& block, int b) {
    const float* table = a_.bias + head_ * (2 * std::int64_t{a_.radius} + 1);
    const std::int64_t begin = bias_begin(block, b);
    if (begin >= 0) {
      for (std::int64_t j = 0; j < block.run[b]; j += kLanes) {
        store(p_[b] + j, load(p_[b] + j) + load(bias_ + begin + j));
      }
    } else {
      for (std::int64_t j = 0; j < block.run[b]; ++j) {
        p_[b][j] += table[pair_column(block.query[b], j)];
      }
    }
    for (std::int32_t k = 0; k < block.ancestors[b]; ++k) {
      p_above_[b][k] += table[pair_column(block.query[b], above_[b][k])];
    }
  }

  void load_queries(const Block& block) {
    for (int b = 0; b < block.computed(); ++b) {
      if (b >= block.count) {  // its scores are computed and never read
        for (int d = 0; d < kRow; ++d) q_[b][d] = 0.0F;
        continue;
      }
      const std::int64_t ahead = ahead_of(block.query[b]);
      prefetch(a_.q + ahead * a_.q_token + head_ * a_.q_head);
      copy_row(q_[b], a_.q + block.query[b] * a_.q_token + head_ * a_.q_head);
      rotate(q_[b], first_ + block.node[b], false);
    }
  }

  // exp(score - shift) in place, 0 beyond what is seen; returns the sum.
  float exponentiate(const Block& block, int b, float shift) {
    const std::int64_t keys = round_up(block.longest_run);
    Vec total = {};
    for (std::int64_t j = 0; j < keys; j += kLanes) {
      const Vec e = exp(load(p_[b] + j) - shift);
      const Vec kept = keep_first(e, block.run[b] - static_cast<std::int32_t>(j), 0.0F);
      store(p_[b] + j, kept);
      total += kept;
    }
    float all = sum(total);
    const std::int32_t ancestors = block.ancestors[b];
    for (std::int32_t k = 0; k < ancestors; k += kLanes) {
      const Vec e = exp(load(p_above_[b] + k) - shift);
      const Vec kept = keep_first(e, ancestors - k, 0.0F);
      store(p_above_[b] + k, kept);
      all += sum(kept);
    }
    return all;
  }

  // Rows that are computed and belong to no query see nothing.
  void blank_rest(const Block& block) {
    const std::int64_t keys = round_up(block.longest_run);
    for (int b = block.count; b < block.computed(); ++b) {
      for (std::int64_t j = 0; j < keys; ++j) p_[b][j] = 0.0F;
    }
  }

  void forward_block(const Block& block) {
    load_queries(block);
    score(block);
    float scale[kBlock] = {};
    for (int b = 0; b < block.count; ++b) {
      if (block.run[b] + block.ancestors[b] == 0) {  // nothing to see: zeros
        a_.lse[block.query[b] * a_.heads + head_] = 0.0F;
        continue;
      }
      Vec most = splat(-__builtin_inff());
      for (std::int32_t j = 0; j < block.run[b]; j += kLanes) {
        const Vec s = keep_first(load(p_[b] + j), block.run[b] - j, -__builtin_inff());
        most = s > most ? s : most;
      }
      float shift = largest(most);
      for (std::int32_t k = 0; k < block.ancestors[b]; ++k) {
        if (p_above_[b][k] > shift) shift = p_above_[b][k];
      }
      const float total = exponentiate(block, b, shift);
      scale[b] = 1.0F / total;
      a_.lse[block.query[b] * a_.heads + head_] = shift + __builtin_logf(total);
    }
    blank_rest(block);
    Rows::gather(q_, p_, v_, block.longest_run);  // the queries have been used
    for (int b = 0; b < block.count; ++b) {
      for (std::int32_t k = 0; k < block.ancestors[b]; ++k) {
        Rows::add_row(q_[b], v_ + std::int64_t{above_[b][k]} * kRow, p_above_[b][k]);
      }
      float* to = a_.out + (block.query[b] * a_.heads + head_) * a_.dim;
      for (int d = 0; d < a_.dim; ++d) to[d] = q_[b][d] * scale[b];
    }
  }

  void backward_block(const Block& block) {
    load_queries(block);
    float delta[kWide] = {};
    for (int b = 0; b < block.computed(); ++b) {
      if (b >= block.count) {
        for (int d = 0; d < kRow; ++d) grad_[b][d] = 0.0F;
        continue;
      }
      const std::int64_t ahead = ahead_of(block.query[b]);
      prefetch(a_.grad + ahead * a_.grad_token + head_ * a_.grad_head);
      prefetch(a_.out + (ahead * a_.heads + head_) * a_.dim);
      copy_row(grad_[b], a_.grad + block.query[b] * a_.grad_token + head_ * a_.grad_head);
      const float* out = a_.out + (block.query[b] * a_.heads + head_) * a_.dim;
      for (int d = 0; d < a_.dim; ++d) delta[b] += out[d] * grad_[b][d];
    }
    score(block);
    for (int b = 0; b < block.count; ++b) {
      exponentiate(block, b, a_.lse[block.query[b] * a_.heads + head_]);
    }
    const std::int64_t keys = round_up(block.longest_run);
    blank_rest(block);
    for (int part = 0; part < block.count; part += kBlock) {
      // dP = dO v^T, dS = P (dP - delta), dq = dS k
      Rows::dots(grad_ + part, v_by_dim_, a_.dim, padded_, keys,
                 [&](int b, std::int64_t j, Vec dp) {
                   store(ds_[part + b] + j, load(p_[part + b] + j) * (dp - delta[part + b]));
                 });
      Rows::gather(dq_ + part, ds_ + part, k_, block.longest_run);
    }
    Rows::scatter(dk_, ds_, q_, block.count, keys);
    Rows::scatter(dv_, p_, grad_, block.count, keys);
    for (int b = 0; b < block.count; ++b) {
      for (std::int32_t k = 0; k < block.ancestors[b]; ++k) {
        const std::int64_t row = std::int64_t{above_[b][k]} * kRow;
        const float p = p_above_[b][k];
        const float ds = p * (Rows::dot(grad_[b], v_ + row) - delta[b]);
        ds_above_[b][k] = ds;
        Rows::add_row(dq_[b], k_ + row, ds);
        Rows::add_row(dk_ + row, q_[b], ds);
        Rows::add_row(dv_ + row, grad_[b], p);
      }
      if (a_.dbias != nullptr) add_bias_gradient(block, b);
      for (int c = 0; c < V; ++c) store(dq_[b] + c * kLanes, load(dq_[b] + c * kLanes) * a_.scale);
      rotate(dq_[b], first_ + block.node[b], true);
      float* to = a_.dq + (block.query[b] * a_.heads + head_) * a_.dim;
      for (int d = 0; d < a_.dim; ++d) to[d] = dq_[b][d];
    }
  }

  void add_bias_gradient(const Block& block, int b) {
    const std::int64_t begin = bias_begin(block, b);
    float* part = bias_part();
    for (std::int64_t j = 0; j < block.run[b]; j += begin < 0 ? 1 : kLanes) {
      if (begin < 0) {
        part[pair_column(block.query[b], j)] += ds_[b][j];
      } else {  // beyond the run dS is 0
        store(dbias_ + begin + j, load(dbias_ + begin + j) + load(ds_[b] + j));
      }
    }
    for (std::int32_t k = 0; k < block.ancestors[b]; ++k) {
      part[pair_column(block.query[b], above_[b][k])] += ds_above_[b][k];
    }
  }

  void store_key_gradients() {
    for (std::int64_t j = 0; j < length_; ++j) {
      float* dk = dk_ + j * kRow;
      for (int c = 0; c < V; ++c) store(dk + c * kLanes, load(dk + c * kLanes) * a_.scale);
      rotate(dk, first_ + j, true);
      const std::int64_t at = ((first_ + j) * a_.kv_heads + kv_head_) * a_.dim;
      for (int d = 0; d < a_.dim; ++d) {
        a_.dk[at + d] = dk[d];
        a_.dv[at + d] = dv_[j * kRow + d];
      }
    }
  }

  const Attention& a_;
  const std::int32_t tree_, kv_head_;
  const std::int64_t first_, length_, padded_;
  float* next_;
  std::int32_t head_ = 0;
  float *k_, *v_, *k_by_dim_, *v_by_dim_ = nullptr, *dk_ = nullptr, *dv_ = nullptr;
  float *bias_ = nullptr, *dbias_ = nullptr;
  std::int64_t consecutive_ = 0;  // leading keys whose positions count up
  std::int32_t* stack_;
  std::int32_t* above_[kWide];
  float *p_[kWide], *p_above_[kWide], *ds_[kWide], *ds_above_[kWide];
  float *q_[kWide], *grad_[kWide], *dq_[kWide];
};

template <bool backward>
void attention(const Attention& a, std::int64_t task, float* scratch) {
  const auto run = [&](auto tree) { backward ? tree.backward() : tree.forward(); };
  switch (row_floats(a.dim) / kLanes) {
    case 1:
      return run(TreeAttention<1>(a, task, scratch));
    case 2:
      return run(TreeAttention<2>(a, task, scratch));
    case 4:
      return run(TreeAttention<4>(a, task, scratch));
    case 8:
      return run(TreeAttention<8>(a, task, scratch));
    default:
      return run(TreeAttention<16>(a, task, scratch));
  }
}

}  // namespace
