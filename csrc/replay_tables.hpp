// Append-only interned lists of int32: token texts, and candidate sets (lists of text ids).
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "replay_common.hpp"

namespace sacglam::replay {

// A run of int32 that stays where it is for the life of its table.
struct Span {
  const std::int32_t* data;
  std::size_t size;
};

// Equal lists share one id; ids count up from 0 and never change; the data never moves, so that
// a Span taken under the owner's lock may be read after the lock is released.
class InternTable {
 public:
  std::int32_t intern(const std::int32_t* data, std::size_t size) {
    if (size > kMaxSize) throw ReplayFault("a list of more than 2^30 ids cannot be interned");
    if ((entries_.size() + 1) * 2 > slots_.size()) grow_slots();
    const std::uint32_t hash = hash_of(data, size);
    std::size_t slot = hash & (slots_.size() - 1);
    while (slots_[slot] >= 0) {
      const Entry& e = entries_[static_cast<std::size_t>(slots_[slot])];
      if (e.hash == hash && e.size == size && std::equal(data, data + size, e.data)) {
        return slots_[slot];
      }
      slot = (slot + 1) & (slots_.size() - 1);
    }
    if (entries_.size() >= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
      throw ReplayFault("the table is full: 2^31 - 1 different lists are interned");
    }
    std::int32_t* place = allocate(size);
    if (size > 0) std::memcpy(place, data, size * sizeof(std::int32_t));
    entries_.push_back({place, static_cast<std::uint32_t>(size), hash});
    slots_[slot] = static_cast<std::int32_t>(entries_.size() - 1);
    return slots_[slot];
  }

  bool contains(std::int32_t id) const {
    return id >= 0 && static_cast<std::size_t>(id) < entries_.size();
  }
  Span operator[](std::int32_t id) const {
    const Entry& e = entries_[static_cast<std::size_t>(id)];
    return {e.data, e.size};
  }
  std::int32_t size() const { return static_cast<std::int32_t>(entries_.size()); }
  std::size_t bytes() const {
    return chunk_bytes_ + entries_.capacity() * sizeof(Entry) +
           slots_.capacity() * sizeof(std::int32_t);
  }

 private:
  struct Entry {
    const std::int32_t* data;
    std::uint32_t size;
    std::uint32_t hash;
  };
  static constexpr std::size_t kMaxSize = std::size_t{1} << 30;
  static constexpr std::size_t kChunk = std::size_t{1} << 14;  // int32s

  static std::uint32_t hash_of(const std::int32_t* data, std::size_t size) {
    std::uint64_t h = mix64(size + 1);
    for (std::size_t i = 0; i < size; ++i) h = mix64(h ^ static_cast<std::uint32_t>(data[i]));
    return static_cast<std::uint32_t>(h >> 32);
  }

  std::int32_t* allocate(std::size_t size) {
    if (size > room_) {
      const std::size_t n = std::max(size, kChunk);
      chunks_.push_back(std::make_unique_for_overwrite<std::int32_t[]>(n));
      chunk_bytes_ += n * sizeof(std::int32_t);
      next_ = chunks_.back().get();
      room_ = n;
    }
    std::int32_t* place = next_;
    next_ += size;
    room_ -= size;
    return place;
  }

  void grow_slots() {
    std::vector<std::int32_t> slots(std::max<std::size_t>(64, slots_.size() * 2), -1);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      std::size_t slot = entries_[i].hash & (slots.size() - 1);
      while (slots[slot] >= 0) slot = (slot + 1) & (slots.size() - 1);
      slots[slot] = static_cast<std::int32_t>(i);
    }
    slots_ = std::move(slots);
  }

  std::vector<Entry> entries_;
  std::vector<std::int32_t> slots_;  // open addressing, a power of two, -1 = empty
  std::vector<std::unique_ptr<std::int32_t[]>> chunks_;
  std::size_t chunk_bytes_ = 0;
  std::int32_t* next_ = nullptr;
  std::size_t room_ = 0;
};

struct Tables {
  InternTable texts;
  InternTable sets;

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
