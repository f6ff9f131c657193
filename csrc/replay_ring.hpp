// The lock-free heart of the replay buffer: a ring with one writer and any number of readers.
//
// Positions count up forever; [head, tail) is live. An element is written once, published by the
// tail, and its place is written again only after the head has passed it.
//
// Why a reader never accepts a torn or foreign element, though it takes no lock:
//   W1 head.store(h')          an eviction says so first
//   W2 fence(release)          begin_writing()
//   W3 words.store(relaxed)    only then are places below h' written again
//   W4 tail.store(release)     publish()
//   R1 tail.load(acquire)      pairs with W4: every element below the tail is wholly there, in the
//                              block that is loaded after it or a later one
//   R2 words.load(relaxed)
//   R3 fence(acquire)
//   R4 head.load(relaxed)      position < head: reject
// If R2 reads a word that W3 wrote for a later lap, the fences W2 and R3 synchronise through that
// word, W1 happens before R4, and R4 sees a head beyond the position. (The scheme of a sequence
// lock; here the sequence is the head, so that one check covers everything an episode owns.) All
// shared words are atomics: no data race exists for the language or for a sanitizer to find.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "replay_lines.hpp"
#include "replay_sync.hpp"

namespace sacglam::replay {

// Frees memory that readers may still look at once no reader is inside. Readers announce
// themselves once per call (not per row); writers never wait: what cannot be freed now is freed
// by a later call.
class Reclaimer {
 public:
  class Guard {
   public:
    explicit Guard(const Reclaimer& r) {
      for (;;) {
        const std::size_t side = r.side_.load(std::memory_order_seq_cst);
        readers_ = &r.readers_[side];
        readers_->fetch_add(1, std::memory_order_seq_cst);
        // Looked at again after it counts: whoever turned the side meanwhile may not wait for it.
        if (r.side_.load(std::memory_order_seq_cst) == side) break;
        readers_->fetch_sub(1, std::memory_order_release);
      }
      // Pairs with the fence in collect(): either it sees this reader, or this reader's loads
      // see the pointers that replaced what collect() frees.
      std::atomic_thread_fence(std::memory_order_seq_cst);
    }
    // Release: what this reader did happens before a collect() that sees it gone.
    ~Guard() { readers_->fetch_sub(1, std::memory_order_release); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    std::atomic<std::int64_t>* readers_ = nullptr;
  };

  // `memory` must already be unreachable for readers that come from now on.
  void retire(std::shared_ptr<const void> memory) {
    const std::lock_guard lock(mutex_);
    retired_.push_back(std::move(memory));
    pending_.store(true, std::memory_order_relaxed);
  }

  void collect() {
    if (!pending_.load(std::memory_order_relaxed)) return;
    Memory free_now, free_too;
    const std::lock_guard lock(mutex_);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const std::size_t side = side_.load(std::memory_order_relaxed);
    // What waits was retired before the side was turned. Who came since, to this side, read it
    // after the turn (seq_cst) and so finds what replaced the memory; those before are counted on
    // the other side. So readers that come all the time do not keep anything for ever.
    if (readers_[1 - side].load(std::memory_order_acquire) != 0) return;
    free_now.swap(waiting_);
    waiting_.swap(retired_);
    side_.store(1 - side, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (readers_[side].load(std::memory_order_acquire) == 0) free_too.swap(waiting_);
    pending_.store(!waiting_.empty(), std::memory_order_relaxed);
  }

 private:
  using Memory = std::vector<std::shared_ptr<const void>>;

  mutable std::atomic<std::int64_t> readers_[2] = {0, 0};
  std::atomic<std::size_t> side_{0};  // where readers count themselves now
  std::mutex mutex_;                  // among writers
  Memory retired_;                    // since the last turn
  Memory waiting_;                    // before it
  std::atomic<bool> pending_{false};
};

template <class T, class Sync = DefaultSync>
class Ring {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % sizeof(std::uint64_t) == 0);
  static constexpr std::size_t kWords = sizeof(T) / sizeof(std::uint64_t);
  using Word = typename Sync::template Atomic<std::uint64_t>;
  struct Block;
  struct Places {
    const Word* words;
    std::uint64_t mask;
    const Word* at(std::uint64_t position) const { return &words[(position & mask) * kWords]; }
    // Word by word to where they stay: words that were just stored are read back as wider ones
    // only after a wait.
    void load(std::uint64_t position, T& value) const {
      const Word* from = at(position);
#pragma GCC unroll 8
      for (std::size_t i = 0; i < kWords; ++i) {
        const std::uint64_t word = Sync::load_relaxed(from[i]);
        std::memcpy(reinterpret_cast<std::byte*>(&value) + i * sizeof word, &word, sizeof word);
      }
    }
  };

 public:
  explicit Ring(Reclaimer& reclaimer, std::size_t places = 4) : reclaimer_(reclaimer) {
    set_block(std::make_shared<Block>(places));
  }

  // ---- the writer (one at a time)

  void restart(std::uint64_t position) {  // before there are readers
    next_ = position;
    Sync::store_relaxed(head_, position);
    Sync::store_release(tail_, position);
  }
  // Once after the heads were advanced, before the first push of any ring that shares the
  // eviction (W2).
  static void begin_writing() { Sync::fence_release(); }
  void push(const T& value) {
    if (next_ - Sync::load_relaxed(head_) > owned_->mask) grow();
    std::uint64_t words[kWords];
    std::memcpy(words, &value, sizeof value);
    Word* place = &owned_->words[(next_ & owned_->mask) * kWords];
    for (std::size_t i = 0; i < kWords; ++i) Sync::store_relaxed(place[i], words[i]);
    ++next_;
  }
  std::uint64_t next() const { return next_; }           // where the next push goes
  void abandon() { next_ = Sync::load_relaxed(tail_); }  // forgets what was not published
  void publish() { Sync::store_release(tail_, next_); }
  void advance_head(std::uint64_t position) { Sync::store_release(head_, position); }
  std::size_t bytes() const { return (owned_->mask + 1) * sizeof(T); }

  // ---- readers (inside a Reclaimer::Guard) and the writer

  std::uint64_t head() const { return Sync::load_acquire(head_); }
  std::uint64_t tail() const { return Sync::load_acquire(tail_); }
  // Load the head before the tail: then the range never appears negative, and what is stale in
  // it is rejected by read().
  std::pair<std::uint64_t, std::uint64_t> range() const {
    const std::uint64_t first = head();
    return {first, tail()};
  }
  // Of the writer.
  T peek(std::uint64_t position) const {
    T value;
    owned_->places().load(position, value);
    return value;
  }

  // The range and the block that holds it, looked at once for many elements. What is published
  // later is beyond it; what goes is noticed. (A block that is replaced keeps what it held.)
  class View {
   public:
    explicit View(const Ring& ring) : ring_(&ring) {
      std::tie(head_, tail_) = ring.range();
      places_ = Sync::load_acquire(ring.block_)->places();  // after the tail: holds all below it
    }
    std::uint64_t head() const { return head_; }
    std::uint64_t tail() const { return tail_; }
    // Whatever is at this position; may be torn or newer, until still_live() or an enclosing
    // check says otherwise.
    T peek(std::uint64_t position) const {
      T value;
      places_.load(position, value);
      return value;
    }
    // One of its words alone, of two 32-bit fields (the first one first). The fence pairs with W2:
    // whoever looks up an id found here finds a table that has it, be the row a later one.
    std::array<std::int32_t, 2> peek_pair(std::uint64_t position, std::size_t word) const {
      const std::uint64_t pair = Sync::load_relaxed(places_.at(position)[word]);
      Sync::fence_acquire();
      return std::bit_cast<std::array<std::int32_t, 2>>(pair);
    }
    [[gnu::always_inline]] void prefetch(std::uint64_t position) const {
      __builtin_prefetch(places_.at(position));
    }
    bool still_live(std::uint64_t position) const {
      Sync::fence_acquire();                                // R3
      return position >= Sync::load_relaxed(ring_->head_);  // R4
    }
    bool read(std::uint64_t position, T& value) const {
      places_.load(position, value);
      return still_live(position) && position < tail_;
    }

   private:
    const Ring* ring_;
    std::uint64_t head_, tail_;
    Places places_;
  };

 private:
  struct Block {
    explicit Block(std::size_t places)
        : mask(places - 1), words(make_lines<Word>(places * kWords)) {}
    Places places() const { return {words.get(), mask}; }
    std::uint64_t mask;  // places - 1, a power of two less one
    Lines<Word> words;
  };

  void set_block(std::shared_ptr<Block> block) {
    // Release: a reader of the new block finds in it what was copied. The old block keeps what
    // it held, so that readers who still use it read sound elements.
    Sync::store_release(block_, static_cast<const Block*>(block.get()));
    std::swap(owned_, block);
    if (block) reclaimer_.retire(std::move(block));
  }

  void grow() {
    auto bigger = std::make_shared<Block>((owned_->mask + 1) * 2);
    for (std::uint64_t p = Sync::load_relaxed(head_); p != next_; ++p) {
      const Word* from = &owned_->words[(p & owned_->mask) * kWords];
      Word* to = &bigger->words[(p & bigger->mask) * kWords];
      for (std::size_t i = 0; i < kWords; ++i) {
        Sync::store_relaxed(to[i], Sync::load_relaxed(from[i]));
      }
    }
    set_block(std::move(bigger));
  }

  Reclaimer& reclaimer_;
  std::shared_ptr<Block> owned_;
  std::uint64_t next_ = 0;
  typename Sync::template Atomic<const Block*> block_{nullptr};
  // Apart, so that readers who check the head do not share a line with the writer's tail.
  alignas(64) typename Sync::template Atomic<std::uint64_t> head_{0};
  alignas(64) typename Sync::template Atomic<std::uint64_t> tail_{0};
};

}  // namespace sacglam::replay
