// A list of ids as the interned tables keep it: two bytes an id where all fit them, else four.
//
// Most vocabularies have fewer than 2^16 tokens. What a batch costs is the memory that its prompts
// are gathered from, and that is half as much then.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace sacglam::replay {

// A run of ids that stays where it is for the life of its table. It begins at a multiple of kUnit
// bytes, and the memory up to the next multiple belongs to it: copies may go by blocks of kBlock
// ids.
struct Span {
  static constexpr std::size_t kUnit = 32;
  static constexpr std::size_t kBlock = 8;

  const void* data = nullptr;  // null: there is no such list
  std::uint32_t size = 0;
  bool narrow = false;

  const std::uint16_t* two_bytes() const { return static_cast<const std::uint16_t*>(data); }
  const std::int32_t* four_bytes() const { return static_cast<const std::int32_t*>(data); }
  std::int32_t operator[](std::size_t i) const {
    return narrow ? std::int32_t{two_bytes()[i]} : four_bytes()[i];
  }
  std::size_t bytes() const { return size * bytes_per_id(narrow); }
  std::size_t units() const { return units_of(size, narrow); }
  std::vector<std::int32_t> ids() const {
    std::vector<std::int32_t> out(size);
    copy_to(out.data());
    return out;
  }
  void copy_to(std::int32_t* to) const {
    if (narrow) {
      std::copy_n(two_bytes(), size, to);
    } else if (size > 0) {
      std::memcpy(to, data, bytes());
    }
  }
  bool equals(const std::int32_t* ids, std::size_t count) const {
    if (count != size) return false;
    return narrow ? std::equal(ids, ids + count, two_bytes())
                  : std::equal(ids, ids + count, four_bytes());
  }

  static bool fits_two_bytes(const std::int32_t* ids, std::size_t size) {
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < size; ++i) bits |= static_cast<std::uint32_t>(ids[i]);
    return bits < (std::uint32_t{1} << 16);
  }
  static std::size_t units_of(std::size_t size, bool narrow) {
    return std::max<std::size_t>(1, (size * bytes_per_id(narrow) + kUnit - 1) / kUnit);
  }
  // Fills units_of(size, narrow) units at `place`. The rest of the last one is copied with the
  // block that it is in, so that it must hold something.
  static Span write(const std::int32_t* ids, std::size_t size, bool narrow, void* place) {
    const Span out{place, static_cast<std::uint32_t>(size), narrow};
    std::memset(static_cast<std::byte*>(place) + out.bytes(), 0, out.units() * kUnit - out.bytes());
    if (narrow) {
      std::transform(ids, ids + size, static_cast<std::uint16_t*>(place),
                     [](std::int32_t id) { return static_cast<std::uint16_t>(id); });
    } else if (size > 0) {
      std::memcpy(place, ids, out.bytes());
    }
    return out;
  }

 private:
  static constexpr std::size_t bytes_per_id(bool narrow) { return narrow ? 2 : 4; }
};

}  // namespace sacglam::replay
