// Priorities of the stored transitions, as exact sums: what proportional sampling draws from
// (Schaul et al. 2016, "Prioritized Experience Replay").
//
// A priority p becomes the integer round(2^24 * (p + epsilon)^alpha), and all sums are of integers:
// they never drift, do not depend on the order of updates, and a run that is resumed draws the
// same.
//
// One writer at a time (the owner's lock), any number of readers without a lock. A reader may find
// a sum that is older or newer than its parts; it then ends at a transition that is drawn a little
// too rarely or too often for a moment, or at none, and draws again. What it found is only a
// position: whether that is live is decided as everywhere else, by the rings' tail and heads.
#pragma once

#include <cmath>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "replay_episode.hpp"
#include "replay_ring.hpp"

namespace sacglam::replay {

// A tree of sums over integers. The eight children of a node are one cache line.
class SumTree {
 public:
  static constexpr std::size_t kFan = 8;
  static constexpr unsigned kFanBits = 3;

  explicit SumTree(std::size_t leaves) {
    for (std::size_t size = leaves;; size = (size + kFan - 1) / kFan) {
      const std::size_t lines = (size + kFan - 1) / kFan;
      levels_.emplace_back(std::make_unique<Line[]>(lines));
      sizes_.push_back(size);
      bytes_ += lines * sizeof(Line);
      if (lines == 1) break;
    }
  }

  // The writer's.
  void set(std::size_t leaf, std::uint64_t value) {
    const std::uint64_t change = value - get(leaf);  // modulo 2^64, as every sum is
    if (change == 0) return;
    std::size_t i = leaf;
    for (const auto& level : levels_) {
      Word& word = at(level, i);
      word.store(word.load(std::memory_order_relaxed) + change, std::memory_order_relaxed);
      i >>= kFanBits;
    }
    total_.store(total_.load(std::memory_order_relaxed) + change, std::memory_order_relaxed);
  }

  std::uint64_t get(std::size_t leaf) const {
    return at(levels_[0], leaf).load(std::memory_order_relaxed);
  }
  std::uint64_t total() const { return total_.load(std::memory_order_relaxed); }
  // The sum of all leaves in front of this one.
  std::uint64_t before(std::size_t leaf) const {
    std::uint64_t sum = 0;
    for (const auto& level : levels_) {
      for (std::size_t i = leaf & ~(kFan - 1); i < leaf; ++i) {
        sum += at(level, i).load(std::memory_order_relaxed);
      }
      leaf >>= kFanBits;
    }
    return sum;
  }
  // The leaf in whose part of [0, total) x lies.
  std::size_t find(std::uint64_t x) const {
    std::size_t node = 0;
    for (std::size_t level = levels_.size(); level-- > 0;) {
      const Line& line = levels_[level][node];
      std::size_t child = 0;
      for (; child < kFan - 1; ++child) {
        const std::uint64_t sum = line.words[child].load(std::memory_order_relaxed);
        if (x < sum) break;
        x -= sum;
      }
      // Sums that change meanwhile may point beyond the last child.
      node = std::min(node * kFan + child, sizes_[level] - 1);
    }
    return node;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  using Word = std::atomic<std::uint64_t>;
  struct alignas(64) Line {
    Word words[kFan];
  };
  using Level = std::unique_ptr<Line[]>;
  static Word& at(const Level& level, std::size_t i) { return level[i / kFan].words[i % kFan]; }

  std::vector<Level> levels_;  // the leaves first
  std::vector<std::size_t> sizes_;
  std::size_t bytes_ = 0;
  Word total_{0};
};

class Priorities {
 public:
  static constexpr double kUnit = 16777216.0;  // 2^24: of p^alpha = 1
  static constexpr std::uint64_t kOne = std::uint64_t{1} << 24;
  static constexpr std::uint64_t kMost = std::uint64_t{1} << 39;  // p^alpha of 32768

  struct Pick {
    std::uint64_t position;
    double scale;  // N * P: 1 where the draw is as probable as a uniform one
  };

  // Which of two sets of transitions is drawn from: all, or those that hindsight can use.
  enum Set { kAll, kHer };

  Priorities(double alpha, double epsilon, bool with_her, Reclaimer& reclaimer)
      : alpha_(alpha), epsilon_(epsilon), with_her_(with_her), reclaimer_(reclaimer) {
    publish(std::make_shared<Block>(kSmallest, with_her_));
  }

  std::uint64_t value_of(double priority) const {
    const double value = std::pow(priority + epsilon_, alpha_) * kUnit;
    if (!(value < static_cast<double>(kMost))) return kMost;
    return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(value + 0.5));
  }
  double alpha() const { return alpha_; }

  // ---- the writer

  // Room for the positions [head, end); the only call that can fail.
  void reserve(std::uint64_t head, std::uint64_t tail, std::uint64_t end) {
    std::size_t leaves = owned_->mask + 1;
    if (end - head <= leaves) return;
    while (end - head > leaves) leaves *= 2;
    auto bigger = std::make_shared<Block>(leaves, with_her_);
    for (std::uint64_t p = head; p != tail; ++p) {
      bigger->all.set(p & bigger->mask, value(p));
      if (with_her_) bigger->her->set(p & bigger->mask, owned_->her->get(p & owned_->mask));
    }
    publish(std::move(bigger));
  }
  // A new transition gets the largest priority that was ever given, so that it is seen soon.
  void add(std::uint64_t position, bool her) {
    owned_->all.set(position & owned_->mask, largest_);
    if (with_her_ && her) owned_->her->set(position & owned_->mask, largest_);
    if (her) ++her_count_;
    ++count_;
  }
  void remove(std::uint64_t position, bool her) {
    owned_->all.set(position & owned_->mask, 0);
    if (with_her_) owned_->her->set(position & owned_->mask, 0);
    if (her) --her_count_;
    --count_;
  }
  // Of a live transition.
  void set(std::uint64_t position, std::uint64_t value) {
    owned_->all.set(position & owned_->mask, value);
    if (with_her_ && owned_->her->get(position & owned_->mask) != 0) {
      owned_->her->set(position & owned_->mask, value);
    }
    largest_ = std::max(largest_, value);
  }
  std::uint64_t value(std::uint64_t position) const {
    return owned_->all.get(position & owned_->mask);
  }
  std::uint64_t largest() const { return largest_; }
  void set_largest(std::uint64_t value) { largest_ = value; }
  std::size_t bytes() const { return owned_->all.bytes() + (with_her_ ? owned_->her->bytes() : 0); }

  // ---- readers (inside a Reclaimer::Guard)

  std::uint64_t peek(std::uint64_t position) const {
    const Block& block = *block_.load(std::memory_order_acquire);
    return block.all.get(position & block.mask);
  }

 private:
  static constexpr std::size_t kSmallest = 64;

  struct Block {
    Block(std::size_t leaves, bool with_her) : mask(leaves - 1), all(leaves) {
      if (with_her) her = std::make_unique<SumTree>(leaves);
    }
    std::uint64_t mask;  // leaves - 1, a power of two less one
    SumTree all;
    std::unique_ptr<SumTree> her;
  };

  void publish(std::shared_ptr<Block> block) {
    // Release: a reader of the new block finds in it what was copied.
    block_.store(block.get(), std::memory_order_release);
    std::swap(owned_, block);
    if (block) reclaimer_.retire(std::move(block));
  }

  const double alpha_, epsilon_;
  const bool with_her_;
  Reclaimer& reclaimer_;
  std::shared_ptr<Block> owned_;
  std::atomic<const Block*> block_{nullptr};
  std::uint64_t largest_ = kOne;
  std::atomic<std::uint64_t> count_{0}, her_count_{0};

 public:
  // One batch's view. Leaves are taken in the order of positions from the head on, wherever they
  // lie in the tree, so that what is drawn depends on the contents alone.
  class View {
   public:
    View(const Priorities& priorities, const Ring<Row>& rows) : p_(priorities), rows_(rows) {}

    void renew() { block_ = nullptr; }
    // Among all transitions of a set.
    std::optional<Pick> pick(CounterRng& rng, Set set) {
      const SumTree& tree = look(set);
      const std::uint64_t total = tree.total();
      if (total == 0) return std::nullopt;
      const std::uint64_t y = wrapped(rng.below(total) + before_[set], total);
      // The count may lag behind the sums for a moment.
      const std::uint64_t n = std::max<std::uint64_t>(
          1, (set == kAll ? p_.count_ : p_.her_count_).load(std::memory_order_relaxed));
      return found(tree, y, n, total, head_, rows_.tail());
    }
    // Among the transitions at the positions [begin, end).
    std::optional<Pick> pick(CounterRng& rng, std::uint64_t begin, std::uint64_t end) {
      const SumTree& tree = look(kAll);
      const std::uint64_t total = tree.total();
      const std::uint64_t first = tree.before(begin & block_->mask);
      const std::uint64_t last = tree.before(end & block_->mask);
      const bool wraps = (end & block_->mask) <= (begin & block_->mask);
      const std::uint64_t sum = (wraps ? total : 0) + last - first;
      if (sum == 0 || sum > total) return std::nullopt;  // changed while we looked
      const std::uint64_t y = wrapped(rng.below(sum) + first, total);
      return found(tree, y, end - begin, sum, begin, end);
    }

   private:
    const SumTree& look(Set set) {
      const Block* block = p_.block_.load(std::memory_order_acquire);
      if (block != block_) {  // the first time, or the writer has made a larger one
        block_ = block;
        head_ = rows_.head();
        before_[kAll] = block->all.before(head_ & block->mask);
        before_[kHer] = block->her ? block->her->before(head_ & block->mask) : 0;
      }
      return set == kAll ? block->all : *block->her;
    }
    static std::uint64_t wrapped(std::uint64_t y, std::uint64_t total) {
      return y >= total ? y - total : y;
    }
    // `sum` is that of the n priorities that were drawn from.
    std::optional<Pick> found(const SumTree& tree, std::uint64_t y, std::uint64_t n,
                              std::uint64_t sum, std::uint64_t begin, std::uint64_t end) const {
      const std::size_t leaf = tree.find(y);
      const std::uint64_t value = tree.get(leaf & block_->mask);
      const std::uint64_t position = begin + ((leaf - begin) & block_->mask);
      if (value == 0 || position >= end) return std::nullopt;
      return Pick{position,
                  static_cast<double>(n) * static_cast<double>(value) / static_cast<double>(sum)};
    }

    const Priorities& p_;
    const Ring<Row>& rows_;
    const Block* block_ = nullptr;
    std::uint64_t head_ = 0;
    std::uint64_t before_[2] = {0, 0};
  };
};

// Importance weights (N * P)^-beta over the largest of the batch.
inline void weigh(const std::vector<double>& scales, double beta, std::vector<double>& weights) {
  double largest = 0.0;
  weights.resize(scales.size());
  for (std::size_t i = 0; i < scales.size(); ++i) {
    weights[i] = std::pow(scales[i], -beta);
    largest = std::max(largest, weights[i]);
  }
  for (double& w : weights) w /= largest;
}

}  // namespace sacglam::replay
