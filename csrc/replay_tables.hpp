// Append-only interned lists of int32: token texts, and candidate sets (lists of text ids).
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "replay_common.hpp"
#include "replay_ring.hpp"

namespace sacglam::replay {

// A run of int32 that stays where it is for the life of its table. It begins at a multiple of
// kPad, and the memory up to the next multiple belongs to it: copies may go by whole blocks.
struct Span {
  static constexpr std::size_t kPad = 8;
  const std::int32_t* data;
  std::size_t size;
};

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
// With a source, a table is a view: it holds no lists, and adopt() notes where the source has one.
class InternTable {
 public:
  static constexpr std::size_t kMaxSize = std::size_t{1} << 30;

  explicit InternTable(Reclaimer& reclaimer, TableSource* source = nullptr)
      : reclaimer_(reclaimer), source_(source) {
    grow_entries();
  }

  std::int32_t intern(const std::int32_t* data, std::size_t size) {
    if (size > kMaxSize) throw ReplayFault("a list of more than 2^30 ids cannot be interned");
    if (source_ != nullptr) {
      const std::int32_t id = source_->intern(data, size);
      adopt(id);
      return id;
    }
    if ((count_ + 1) * 2 > slots_.size()) grow_slots();
    const std::uint32_t hash = hash_of(data, size);
    std::size_t slot = hash & (slots_.size() - 1);
    while (slots_[slot] >= 0) {
      const Entry& e = owned_.get()[slots_[slot]];
      if (e.hash == hash && e.size == size && std::equal(data, data + size, e.list())) {
        return slots_[slot];
      }
      slot = (slot + 1) & (slots_.size() - 1);
    }
    if (count_ >= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
      throw ReplayFault("the table is full: 2^31 - 1 different lists are interned");
    }
    if (count_ == room_for_entries_) grow_entries();
    owned_.get()[count_].set({store(data, size), size}, hash);
    slots_[slot] = static_cast<std::int32_t>(count_);
    ++count_;
    published_.store(static_cast<std::int32_t>(count_), std::memory_order_release);
    return slots_[slot];
  }

  Span find_at_source(std::int32_t id) const {
    return source_ == nullptr ? Span{nullptr, 0} : source_->find(id);
  }
  // Of a view: whether `id` is there now, or is at the source.
  bool adopt(std::int32_t id) {
    if (contains(id)) return true;
    const Span span = find_at_source(id);
    if (span.data == nullptr) return false;
    const auto place = static_cast<std::size_t>(id);
    while (place >= room_for_entries_) grow_entries();
    count_ = std::max(count_, place + 1);
    owned_.get()[place].set(span, 0);
    published_.store(static_cast<std::int32_t>(count_), std::memory_order_release);
    return true;
  }

  // Readers: inside a Reclaimer::Guard, as the array of entries may be replaced by a larger one.
  bool contains(std::int32_t id) const {
    return id >= 0 && id < size() && entries_.load(std::memory_order_acquire)[id].list() != nullptr;
  }
  Span operator[](std::int32_t id) const {
    const Entry& e = entries_.load(std::memory_order_acquire)[id];
    return {e.list(), e.size};
  }
  void prefetch(std::int32_t id) const {
    __builtin_prefetch(entries_.load(std::memory_order_acquire) + id);
  }
  static std::uint64_t long_hash_of(const std::int32_t* data, std::size_t size) {
    std::uint64_t h = mix64(size + 1);
    for (std::size_t i = 0; i < size; ++i) h = mix64(h ^ static_cast<std::uint32_t>(data[i]));
    return h;
  }
  std::int32_t size() const { return published_.load(std::memory_order_acquire); }
  std::size_t bytes() const {
    return chunk_bytes_ + room_for_entries_ * sizeof(Entry) +
           slots_.capacity() * sizeof(std::int32_t);
  }

 private:
  struct Entry {
    // Null where a view has no list yet. Set once, after the rest (release), as a view's entries
    // are filled in any order beside readers who look whether they are there (acquire).
    std::atomic<const std::int32_t*> data{nullptr};
    std::uint32_t size = 0;
    std::uint32_t hash = 0;

    const std::int32_t* list() const { return data.load(std::memory_order_acquire); }
    void set(const Span& span, std::uint32_t its_hash) {
      size = static_cast<std::uint32_t>(span.size);
      hash = its_hash;
      data.store(span.data, std::memory_order_release);
    }
  };
  struct alignas(sizeof(std::int32_t) * Span::kPad) Unit {
    std::int32_t ids[Span::kPad];
  };
  struct Free {
    void operator()(std::int32_t* p) const { std::free(p); }
  };
  static constexpr std::size_t kSmallestChunk = std::size_t{1} << 14;  // bytes

  static std::uint32_t hash_of(const std::int32_t* data, std::size_t size) {
    return static_cast<std::uint32_t>(long_hash_of(data, size) >> 32);
  }

  const std::int32_t* store(const std::int32_t* data, std::size_t size) {
    const std::size_t units = std::max<std::size_t>(1, (size + Span::kPad - 1) / Span::kPad);
    if (units > room_) new_chunk(units);
    std::int32_t* place = next_;
    next_ += units * Span::kPad;
    room_ -= units;
    if (size > 0) std::memcpy(place, data, size * sizeof(std::int32_t));
    std::fill(place + size, next_, 0);  // copied by whole blocks, so it must hold something
    return place;
  }

  // Chunks grow with the table, to whole huge pages in the end: batches gather from all over
  // them, and translating addresses costs as much as the copies when pages are small.
  void new_chunk(std::size_t units) {
    constexpr std::size_t kHugePage = std::size_t{1} << 21;
    std::size_t bytes = std::max(units * sizeof(Unit), std::min(chunk_bytes_, 2 * kHugePage));
    bytes = std::max(bytes, kSmallestChunk);
    const bool huge = bytes >= kHugePage;
    const std::size_t page = huge ? kHugePage : alignof(Unit);
    bytes = (bytes + page - 1) / page * page;
    void* memory = std::aligned_alloc(page, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    chunks_.emplace_back(static_cast<std::int32_t*>(memory));
#ifdef MADV_HUGEPAGE
    if (huge) ::madvise(memory, bytes, MADV_HUGEPAGE);  // advice: nothing depends on it
#endif
    chunk_bytes_ += bytes;
    next_ = chunks_.back().get();
    room_ = bytes / sizeof(Unit);
  }

  void grow_entries() {
    const std::size_t room = std::max<std::size_t>(64, room_for_entries_ * 2);
    std::shared_ptr<Entry[]> bigger(new Entry[room]);
    for (std::size_t i = 0; i < count_; ++i) {
      const Entry& e = owned_.get()[i];
      bigger.get()[i].set({e.list(), e.size}, e.hash);
    }
    entries_.store(bigger.get(), std::memory_order_release);
    std::swap(owned_, bigger);
    room_for_entries_ = room;
    if (bigger) reclaimer_.retire(std::move(bigger));
  }

  void grow_slots() {
    std::vector<std::int32_t> slots(std::max<std::size_t>(64, slots_.size() * 2), -1);
    for (std::size_t i = 0; i < count_; ++i) {
      std::size_t slot = owned_.get()[i].hash & (slots.size() - 1);
      while (slots[slot] >= 0) slot = (slot + 1) & (slots.size() - 1);
      slots[slot] = static_cast<std::int32_t>(i);
    }
    slots_ = std::move(slots);
  }

  Reclaimer& reclaimer_;
  TableSource* const source_;
  std::shared_ptr<Entry[]> owned_;
  std::size_t room_for_entries_ = 0;
  std::size_t count_ = 0;
  std::atomic<const Entry*> entries_{nullptr};
  std::atomic<std::int32_t> published_{0};
  std::vector<std::int32_t> slots_;  // open addressing, a power of two, -1 = empty
  std::vector<std::unique_ptr<std::int32_t, Free>> chunks_;
  std::size_t chunk_bytes_ = 0;
  std::int32_t* next_ = nullptr;
  std::size_t room_ = 0;  // units left in the last chunk
};

struct Tables {
  explicit Tables(Reclaimer& reclaimer, TableSource* text_source = nullptr,
                  TableSource* set_source = nullptr)
      : texts(reclaimer, text_source), sets(reclaimer, set_source) {}
  InternTable texts;
  InternTable sets;

  // Of views: what another process has interned becomes known here, a set's texts before it.
  void adopt_set(std::int32_t id) {
    if (sets.contains(id)) return;
    const Span set = sets.find_at_source(id);
    for (std::size_t i = 0; i < set.size; ++i) texts.adopt(set.data[i]);
    sets.adopt(id);
  }

  std::int32_t intern_text(const std::int32_t* ids, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) {
      if (ids[i] < 0) {
        throw ReplayFault("token ids must not be negative: got " + std::to_string(ids[i]) +
                          " at position " + std::to_string(i));
      }
    }
    return texts.intern(ids, size);
  }

  std::int32_t intern_candidates(const std::int32_t* ids, std::size_t size) {
    if (size == 0) throw ReplayFault("a candidate set needs at least one action text");
    for (std::size_t i = 0; i < size; ++i) texts.adopt(ids[i]);
    for (std::size_t i = 0; i < size; ++i) require_text(ids[i], "candidate");
    std::vector<std::int32_t> sorted(ids, ids + size);
    std::sort(sorted.begin(), sorted.end());
    const auto twin = std::adjacent_find(sorted.begin(), sorted.end());
    if (twin != sorted.end()) {
      throw ReplayFault("a candidate set must not repeat an action: text id " +
                        std::to_string(*twin) + " is given twice");
    }
    return sets.intern(ids, size);
  }

  void require_text(std::int32_t id, const char* what) const {
    if (!texts.contains(id)) throw ReplayFault(range_message(what, id, "text", texts.size()));
  }
  void require_set(std::int32_t id, const char* what) const {
    if (!sets.contains(id)) {
      throw ReplayFault(range_message(what, id, "candidate set", sets.size()));
    }
  }

 private:
  static std::string range_message(const char* what, std::int32_t id, const char* table,
                                   std::int32_t size) {
    return std::string(what) + ": id " + std::to_string(id) + " is not an interned " + table +
           " (" + std::to_string(size) + " are interned); intern it first";
  }
};

}  // namespace sacglam::replay
