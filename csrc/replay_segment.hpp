// The protocol of a shared segment: one producer at a time writes it, any number of readers in
// any process copy from it, and nobody waits for anybody, dead or alive.
//
// One 64-bit word says who may write: a ticket (unique for ever, the segment's generation), the
// producer's slot, and whether it is open. It changes by compare-and-swap alone, so that two
// claims, or a claim and a seal, can never both succeed. A second word, `fill`, says how many
// words are published; it repeats the ticket, as its owner cannot change both at once.
//
//   W1 control.cas(acq_rel)    claim(): the segment belongs to a new ticket
//   W2 fence(release)
//   W3 words.store(relaxed)    put(): where an earlier ticket's words may still be read
//   W4 fill.store(release)     publish(): what is below it never changes under this ticket
//   R1 fill.load(acquire)      pairs with W4: every word below it is wholly there
//   R2 words.load(relaxed)
//   R3 fence(acquire)
//   R4 control.load(relaxed)   another ticket than R1's: reject
// If R2 reads a word that W3 wrote for a later ticket, the fences W2 and R3 synchronise through
// that word, W1 happens before R4, and R4 sees the later ticket. A producer that dies leaves
// either nothing new (before W4) or a sound prefix (after it); the segment can be claimed again
// once someone has proved its owner dead and sealed it.
#pragma once

#include <cstdint>

#include "replay_sync.hpp"

namespace sacglam::replay {

// The control word: ticket 44 bits, producer slot 18, spared 1, open 1 (lowest).
struct Control {
  static constexpr unsigned kSlotBits = 18;
  static constexpr std::uint64_t kOpen = 1;
  static constexpr std::uint64_t kSpared = 2;

  static constexpr std::uint64_t pack(std::uint64_t ticket, std::uint64_t slot, bool open) {
    return (ticket << 20) | (slot << 2) | (open ? kOpen : 0);
  }
  static constexpr std::uint64_t ticket(std::uint64_t control) { return control >> 20; }
  static constexpr std::uint64_t slot(std::uint64_t control) {
    return (control >> 2) & ((std::uint64_t{1} << kSlotBits) - 1);
  }
  static constexpr bool is_open(std::uint64_t control) { return (control & kOpen) != 0; }
  // Sealed, and not to be claimed by the next who comes by.
  static constexpr bool is_spared(std::uint64_t control) { return (control & kSpared) != 0; }
};

// The fill word: ticket (its low 40 bits), published words 24 bits.
struct Fill {
  static constexpr unsigned kCountBits = 24;
  static constexpr std::uint64_t kMost = (std::uint64_t{1} << kCountBits) - 1;

  static constexpr std::uint64_t pack(std::uint64_t ticket, std::uint64_t count) {
    return (ticket << kCountBits) | count;
  }
  static constexpr std::uint64_t count(std::uint64_t fill) { return fill & kMost; }
  static constexpr bool belongs_to(std::uint64_t fill, std::uint64_t ticket) {
    return fill >> kCountBits == (ticket & ((std::uint64_t{1} << (64 - kCountBits)) - 1));
  }
};

template <class Sync>
struct SegmentHead {
  typename Sync::template Atomic<std::uint64_t> control;
  typename Sync::template Atomic<std::uint64_t> fill;
};

// A view of a segment; its memory, zeroed at first, is somebody else's.
template <class Sync = DefaultSync>
class Segment {
 public:
  using Word = typename Sync::template Atomic<std::uint64_t>;

  Segment(SegmentHead<Sync>& head, Word* words) : head_(head), words_(words) {}

  std::uint64_t control() const { return Sync::load_acquire(head_.control); }
  std::uint64_t fill() const { return Sync::load_acquire(head_.fill); }  // R1

  // ---- whoever wants to write here next

  // `seen` is a control word that was neither open nor spared. False when somebody else was faster.
  bool claim(std::uint64_t seen, std::uint64_t ticket, std::uint64_t slot) {
    if (!Sync::compare_exchange(head_.control, seen, Control::pack(ticket, slot, true))) {
      return false;  // W1 failed
    }
    Sync::fence_release();  // W2
    Sync::store_relaxed(head_.fill, Fill::pack(ticket, 0));
    return true;
  }
  // By the owner that is done, or by whoever has proved the owner of exactly `seen` dead.
  bool seal(std::uint64_t seen, bool spared) {
    return Sync::compare_exchange(head_.control, seen,
                                  Control::pack(Control::ticket(seen), Control::slot(seen), false) |
                                      (spared ? Control::kSpared : 0));
  }
  // By anybody who comes by.
  bool unspare(std::uint64_t seen) {
    return Sync::compare_exchange(head_.control, seen, seen & ~Control::kSpared);
  }

  // ---- the owner

  void put(std::uint64_t at, std::uint64_t value) { Sync::store_relaxed(words_[at], value); }  // W3
  void publish(std::uint64_t ticket, std::uint64_t count) {
    Sync::store_release(head_.fill, Fill::pack(ticket, count));  // W4
  }

  // ---- readers

  std::uint64_t peek(std::uint64_t at) const { return Sync::load_relaxed(words_[at]); }  // R2
  bool still(std::uint64_t ticket) const {
    Sync::fence_acquire();                                                // R3
    return Control::ticket(Sync::load_relaxed(head_.control)) == ticket;  // R4
  }

 private:
  SegmentHead<Sync>& head_;
  Word* words_;
};

}  // namespace sacglam::replay
