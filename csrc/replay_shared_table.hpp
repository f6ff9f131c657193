// Interned lists of ids in shared memory: any number of processes intern, without a lock.
//
// Three arrays: ids (each list once, in the arena), entries (id -> where its list lies), slots (an
// open-addressing hash table of ids). A list is written where nobody looks, then its entry is
// published, and last of all a compare-and-swap puts its id into the first empty slot of its probe
// sequence. Slots never change again, so that two processes that bring the same list meet at the
// same slot: one wins, the other takes the winner's id. A process that dies on the way leaves an
// id that nobody was given and the rest of its chunk of the arena; nobody waits for it.
#pragma once

#include <atomic>
#include <bit>

#include "replay_mapping.hpp"
#include "replay_tables.hpp"

namespace sacglam::replay {

// The arena of all tables: taken from the shared one in chunks, each of which one process fills.
class SharedArena {
 public:
  static constexpr std::size_t kUnit = Span::kUnit;                      // bytes
  static constexpr std::size_t kChunk = (std::size_t{1} << 16) / kUnit;  // units

  SharedArena(const Mapping& mapping, std::atomic<std::uint64_t>& next, std::size_t begin)
      : mapping_(mapping), next_(next), begin_(begin) {}

  // One thread of a process at a time. The unit's number.
  std::uint64_t take(std::size_t units) {
    if (units > left_) refill(units);
    left_ -= units;
    return std::exchange(at_, at_ + units);
  }
  void* at(std::uint64_t unit) const { return mapping_.data() + begin_ + unit * kUnit; }
  std::uint64_t taken() const { return std::min(next_.load(std::memory_order_relaxed), room()); }
  std::size_t bytes() const { return taken() * kUnit; }
  std::uint64_t room() const { return (mapping_.bytes() - begin_) / kUnit; }

 private:
  void refill(std::size_t units) {
    const std::size_t size = std::max(units, kChunk);
    // Never beyond the end, however often it is tried: the counter must not wrap.
    const auto fits = [&](std::uint64_t first) {
      return first <= room() && size <= room() - first;
    };
    std::uint64_t first = next_.load(std::memory_order_relaxed);
    if (fits(first)) first = next_.fetch_add(size, std::memory_order_relaxed);
    if (!fits(first)) {
      throw ReplayFault("the shared buffer '" + mapping_.name() + "' holds " +
                        std::to_string(bytes()) +
                        " bytes of texts, and there is no room for more; create it with larger "
                        "shared_bytes");
    }
    mapping_.reserve(begin_ + first * kUnit, begin_ + (first + size) * kUnit);
    at_ = first;
    left_ = size;
  }

  const Mapping& mapping_;
  std::atomic<std::uint64_t>& next_;
  std::size_t begin_;
  std::uint64_t at_ = 0;
  std::size_t left_ = 0;
};

class SharedTable final : public TableSource {
 public:
  struct Places {
    std::atomic<std::uint32_t>* count;
    std::atomic<std::uint64_t>* slots;  // [slots]: tag (high half), id + 1 (low half); 0 = empty
    // 0: none
    std::atomic<std::uint64_t>* entries;  // [room]: first unit + 1 (33 bits), narrow (1), size (30)
    std::size_t room;
    std::size_t slot_count;  // a power of two, at least 2 * room
  };

  SharedTable(const Places& places, SharedArena& arena, const char* kind)
      : p_(places), arena_(arena), kind_(kind) {}

  static std::size_t slots_for(std::size_t room) { return std::bit_ceil(2 * room); }

  // One thread of a process at a time (the arena is the process's own).
  std::int32_t intern(const std::int32_t* data, std::size_t size) override {
    const std::uint64_t hash = InternTable::long_hash_of(data, size);
    const std::uint64_t tag = hash & ~std::uint64_t{0xFFFFFFFF};
    std::int32_t mine = -1;
    for (std::size_t tries = 0; tries < p_.slot_count; ++tries) {
      const std::size_t slot = (hash + tries) & (p_.slot_count - 1);
      // Acquire: pairs with the exchange below; the entry and its list are there.
      std::uint64_t there = p_.slots[slot].load(std::memory_order_acquire);
      if (there == 0) {
        if (mine < 0) mine = add(data, size);
        const std::uint64_t value = tag | static_cast<std::uint32_t>(mine + 1);
        if (p_.slots[slot].compare_exchange_strong(there, value, std::memory_order_acq_rel,
                                                   std::memory_order_acquire)) {
          return mine;
        }
      }
      if ((there & ~std::uint64_t{0xFFFFFFFF}) != tag) continue;
      const auto id = static_cast<std::int32_t>((there & 0xFFFFFFFF) - 1);
      const Span span = find(id);
      if (span.data != nullptr && span.equals(data, size)) return id;
    }
    // Of a sound table at least half the slots are empty.
    throw ReplayFault(std::string("the shared table of ") + kind_ + " is damaged: it has no end");
  }

  // Its data is null when nobody has published this id.
  Span find(std::int32_t id) const override {
    if (id < 0 || static_cast<std::size_t>(id) >= p_.room) return {};
    // Acquire: pairs with the store in add(); the list is there.
    const std::uint64_t entry = p_.entries[id].load(std::memory_order_acquire);
    const std::uint64_t first = (entry >> kPlaceShift) - 1;
    const bool narrow = (entry & kNarrow) != 0;
    const auto size = static_cast<std::uint32_t>(entry & (kNarrow - 1));
    // A sound one lies in what was taken before it was published; no unit is there for entry 0.
    const std::uint64_t end = arena_.taken();
    if (first >= end || Span::units_of(size, narrow) > end - first) return {};
    return {arena_.at(first), size, Span::bytes_per_id(narrow)};
  }
  std::int32_t size() const {
    return static_cast<std::int32_t>(
        std::min<std::size_t>(p_.count->load(std::memory_order_relaxed), p_.room));
  }

 private:
  static constexpr unsigned kPlaceShift = 31;
  static constexpr std::uint64_t kNarrow = std::uint64_t{1} << (kPlaceShift - 1);
  static_assert(InternTable::kMaxSize < kNarrow);

  std::int32_t add(const std::int32_t* data, std::size_t size) {
    const bool narrow = Span::fits_two_bytes(data, size);
    const std::uint64_t first = arena_.take(Span::units_of(size, narrow));
    Span::write(data, size, narrow, arena_.at(first));
    // Looked at first, so that the counter cannot wrap, however often a full table is tried.
    const bool full = p_.count->load(std::memory_order_relaxed) >= p_.room;
    const std::size_t id = full ? p_.room : p_.count->fetch_add(1, std::memory_order_relaxed);
    if (id >= p_.room) {
      throw ReplayFault(std::string("the shared table of ") + kind_ + " is full: it holds " +
                        std::to_string(p_.room) +
                        " different ones; create the buffer with larger shared_texts");
    }
    p_.entries[id].store(((first + 1) << kPlaceShift) | (narrow ? kNarrow : 0) | size,
                         std::memory_order_release);
    return static_cast<std::int32_t>(id);
  }

  Places p_;
  SharedArena& arena_;
  const char* kind_;
};

}  // namespace sacglam::replay
