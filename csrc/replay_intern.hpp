// Interned lists of ids, in memory that does not move.
#pragma once

#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "replay_common.hpp"
#include "replay_lines.hpp"
#include "replay_reserved.hpp"
#include "replay_ring.hpp"
#include "replay_span.hpp"

namespace sacglam::replay {

// Where the lists of a table lie that are interned elsewhere: in shared memory.
class TableSource {
 public:
  virtual ~TableSource() = default;
  // Its data is null where there is no such list (yet).
  virtual Span find(std::int32_t id) const = 0;
  virtual std::int32_t intern(const std::int32_t* data, std::size_t size) = 0;
};

// Equal lists share one id; ids count up from 0 and never change; the data never moves. One
// writer at a time (the owner's lock); readers take no lock: an id reaches them only through
// something that was released after the list was written (a ring's tail, or size()).
//
// Where lists are freed (release()), an id is never given again, and the memory of entries that are
// gone is given back page by page: see ReservedArray. A reader that finds an entry finds its list
// until it leaves its Reclaimer::Guard.
//
// With a source, a table is a view: adopt() notes where the source has a list, adopt_copy() keeps
// one of its own.
class InternTable {
 public:
  static constexpr std::size_t kMaxSize = (std::size_t{1} << 30) - 1;

  explicit InternTable(Reclaimer& reclaimer, TableSource* source = nullptr, bool frees = false)
      : reclaimer_(reclaimer), source_(source) {
    if (frees) {
      reserved_ = std::make_unique<ReservedArray<Entry>>();
      room_for_entries_ = reserved_->room();
      all_ = reserved_->data();
      entries_.store(all_, std::memory_order_release);
    } else {
      grow_entries();
    }
  }

  ~InternTable() {
    for (const Slot& slot : slots_) {
      if (reserved_ && slot.id >= 0) std::free(const_cast<void*>(all_[slot.id].span().data));
    }
  }
  InternTable(const InternTable&) = delete;
  InternTable& operator=(const InternTable&) = delete;

  std::int32_t intern(const std::int32_t* data, std::size_t size) {
    if (size > kMaxSize) throw ReplayFault("a list of 2^30 ids or more cannot be interned");
    if (source_ != nullptr) return source_->intern(data, size);  // to be adopted
    if ((live_ + 1) * 2 > slots_.size()) grow_slots();
    const std::uint32_t hash = hash_of(data, size);
    Slot& slot = slots_[find_slot(data, size, hash)];
    if (slot.id >= 0) return slot.id;
    const auto most = static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max());
    if (count_ >= (reserved_ ? std::min(most, room_for_entries_) : most)) {
      throw ReplayFault("the table is full: " + std::to_string(count_) +
                        " different lists were interned, and ids are not used again");
    }
    if (count_ == room_for_entries_) grow_entries();
    if (reserved_) reserved_->take(count_);
    all_[count_].set(reserved_ ? store_alone(data, size) : store(data, size));
    slot = {static_cast<std::int32_t>(count_), hash};
    ++count_;
    ++live_;
    published_.store(static_cast<std::int32_t>(count_), std::memory_order_release);
    return slot.id;
  }

  // The id of a list that is interned, or -1.
  std::int32_t find(const std::int32_t* data, std::size_t size) const {
    if (slots_.empty()) return -1;
    return slots_[find_slot(data, size, hash_of(data, size))].id;
  }
  Span find_at_source(std::int32_t id) const {
    return source_ == nullptr ? Span{} : source_->find(id);
  }
  // Of a view: whether `id` is there now, or is at the source.
  bool adopt(std::int32_t id) {
    if (contains(id)) return true;
    const Span span = find_at_source(id);
    if (span.data == nullptr) return false;
    note(id, span);
    return true;
  }
  // Of a view, which does not have `id` yet.
  void adopt_copy(std::int32_t id, const std::vector<std::int32_t>& list) {
    note(id, store(list.data(), list.size()));
  }

  // Readers: inside a Reclaimer::Guard, as the array of entries may be replaced by a larger one.
  bool contains(std::int32_t id) const { return id >= 0 && id < size() && entry(id).is_set(); }
  // Empty, its data null, where there is none (any more).
  Span operator[](std::int32_t id) const { return entry(id).span(); }
  [[gnu::always_inline]] const SpanEntry& entry(std::int32_t id) const {
    return entries_.load(std::memory_order_acquire)[id];
  }
  [[gnu::always_inline]] void prefetch(std::int32_t id) const { __builtin_prefetch(&entry(id)); }
  static std::uint64_t long_hash_of(const std::int32_t* data, std::size_t size) {
    std::uint64_t h = mix64(size + 1);
    for (std::size_t i = 0; i < size; ++i) h = mix64(h ^ static_cast<std::uint32_t>(data[i]));
    return h;
  }
  std::int32_t size() const { return published_.load(std::memory_order_acquire); }
  std::size_t bytes() const {
    return chunk_bytes_ + live_bytes_ +
           (reserved_ ? reserved_->bytes() : room_for_entries_ * sizeof(Entry)) +
           slots_.capacity() * sizeof(Slot);
  }

  // ---- where lists are freed

  bool frees() const { return reserved_ != nullptr; }
  // What the lists that are interned now take, with all that is kept about each.
  std::size_t live_bytes() const { return live_bytes_; }
  std::size_t live() const { return live_; }
  static std::size_t bytes_of(const Span& list) { return list.units() * Span::kUnit + kAbout; }
  static std::size_t bytes_of(const std::vector<std::int32_t>& ids) {
    const bool narrow = Span::fits_two_bytes(ids.data(), ids.size());
    return Span::units_of(ids.size(), narrow) * Span::kUnit + kAbout;
  }
  // For loading: the next id to give.
  void skip_to(std::int32_t id) {
    count_ = std::max(count_, static_cast<std::size_t>(id));
    published_.store(static_cast<std::int32_t>(count_), std::memory_order_release);
  }
  // Forgets a list. Its memory is freed by retire_released() when no reader can look at it.
  void release(std::int32_t id) {
    Entry& e = all_[id];
    const std::vector<std::int32_t> ids = e.span().ids();
    forget_slot(find_slot(ids.data(), ids.size(), hash_of(ids.data(), ids.size())));
    released_.emplace_back(static_cast<std::byte*>(const_cast<void*>(e.span().data)));
    live_bytes_ -= bytes_of(e.span());
    --live_;
    // Nothing else of it: a reader who found the list reads its size.
    e.data.store(nullptr, std::memory_order_release);
    reserved_->give_back(static_cast<std::size_t>(id), count_);
  }
  void retire_released() {
    if (released_.empty()) return;
    reclaimer_.retire(std::make_shared<std::vector<Memory>>(std::exchange(released_, {})));
  }

 private:
  using Entry = SpanEntry;
  // Of the writer's index of what is there.
  struct Slot {
    std::int32_t id = -1;  // empty
    std::uint32_t hash = 0;
  };
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  using Memory = std::unique_ptr<std::byte, Free>;
  // Of a list that can be freed: its entry, slots, lifetime and the allocator's own.
  static constexpr std::size_t kAbout = 160;
  static constexpr std::size_t kSmallestChunk = std::size_t{1} << 14;  // bytes

  static std::uint32_t hash_of(const std::int32_t* data, std::size_t size) {
    return static_cast<std::uint32_t>(long_hash_of(data, size) >> 32);
  }

  void note(std::int32_t id, const Span& span) {
    const auto place = static_cast<std::size_t>(id);
    while (place >= room_for_entries_) grow_entries();
    count_ = std::max(count_, place + 1);
    all_[place].set(span);
    published_.store(static_cast<std::int32_t>(count_), std::memory_order_release);
  }

  Span store(const std::int32_t* data, std::size_t size) {
    const bool narrow = Span::fits_two_bytes(data, size);
    const std::size_t units = Span::units_of(size, narrow);
    if (units > room_) new_chunk(units);
    room_ -= units;
    return Span::write(data, size, narrow, std::exchange(next_, next_ + units * Span::kUnit));
  }

  Span store_alone(const std::int32_t* data, std::size_t size) {
    const bool narrow = Span::fits_two_bytes(data, size);
    const std::size_t units = Span::units_of(size, narrow);
    void* place = std::aligned_alloc(Span::kUnit, units * Span::kUnit);
    if (place == nullptr) throw std::bad_alloc();
    const Span out = Span::write(data, size, narrow, place);
    live_bytes_ += bytes_of(out);
    return out;
  }

  // Where the list is, or the empty slot where it would be.
  std::size_t find_slot(const std::int32_t* data, std::size_t size, std::uint32_t hash) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = hash & mask;
    for (; slots_[at].id >= 0; at = (at + 1) & mask) {
      if (slots_[at].hash == hash && all_[slots_[at].id].span().equals(data, size)) break;
    }
    return at;
  }

  // Closes the gap in its run of slots, so that what was placed behind it is still found.
  void forget_slot(std::size_t gap) {
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t at = (gap + 1) & mask; slots_[at].id >= 0; at = (at + 1) & mask) {
      const std::size_t home = slots_[at].hash & mask;
      if (((at - home) & mask) < ((at - gap) & mask)) continue;  // it may not move before its home
      slots_[gap] = slots_[at];
      gap = at;
    }
    slots_[gap] = {};
  }

  // Chunks grow with the table, to whole huge pages in the end: batches gather from all over
  // them, and translating addresses costs as much as the copies when pages are small.
  void new_chunk(std::size_t units) {
    std::size_t bytes = std::max(units * Span::kUnit, std::min(chunk_bytes_, 2 * kHugePage));
    bytes = whole_units(std::max(bytes, kSmallestChunk));
    chunks_.emplace_back(static_cast<std::byte*>(allocate_lines(bytes)));
    chunk_bytes_ += bytes;
    next_ = chunks_.back().get();
    room_ = bytes / Span::kUnit;
  }

  void grow_entries() {
    const std::size_t room = std::max<std::size_t>(64, room_for_entries_ * 2);
    std::shared_ptr<Entry[]> bigger = make_lines<Entry>(room);
    for (std::size_t i = 0; i < count_; ++i) bigger.get()[i].set(all_[i].span());
    entries_.store(bigger.get(), std::memory_order_release);
    std::swap(owned_, bigger);
    all_ = owned_.get();
    room_for_entries_ = room;
    if (bigger) reclaimer_.retire(std::move(bigger));
  }

  void grow_slots() {
    std::vector<Slot> slots(std::max<std::size_t>(64, slots_.size() * 2));
    for (const Slot& slot : slots_) {
      if (slot.id < 0) continue;
      std::size_t at = slot.hash & (slots.size() - 1);
      while (slots[at].id >= 0) at = (at + 1) & (slots.size() - 1);
      slots[at] = slot;
    }
    slots_ = std::move(slots);
  }

  Reclaimer& reclaimer_;
  TableSource* const source_;
  std::shared_ptr<Entry[]> owned_;
  std::unique_ptr<ReservedArray<Entry>> reserved_;  // instead, where lists are freed
  Entry* all_ = nullptr;                            // the writer's view of either
  std::size_t room_for_entries_ = 0;
  std::size_t count_ = 0;  // ids given
  std::size_t live_ = 0;
  std::size_t live_bytes_ = 0;
  std::vector<Memory> released_;
  std::atomic<const Entry*> entries_{nullptr};
  std::atomic<std::int32_t> published_{0};
  std::vector<Slot> slots_;  // open addressing, a power of two
  std::vector<Memory> chunks_;
  std::size_t chunk_bytes_ = 0;
  std::byte* next_ = nullptr;
  std::size_t room_ = 0;  // units left in the last chunk
};

}  // namespace sacglam::replay
