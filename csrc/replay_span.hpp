// A list of ids as the interned tables keep it: two bytes an id where all fit them, else four.
//
// Most vocabularies have fewer than 2^16 tokens. What a batch costs is the memory that its prompts
// are gathered from, and that is half as much then.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace sacglam::replay {

// A run of ids that stays where it is for the life of its table. It begins at a multiple of kUnit
// bytes, and the memory up to the next multiple belongs to it.
struct Span {
  static constexpr std::size_t kUnit = 32;

  const void* data = nullptr;  // null: there is no such list
  std::uint32_t size = 0;
  std::uint32_t id_bytes = 4;  // or 2

  bool narrow() const { return id_bytes == 2; }
  const std::uint16_t* two_bytes() const { return static_cast<const std::uint16_t*>(data); }
  const std::int32_t* four_bytes() const { return static_cast<const std::int32_t*>(data); }
  std::int32_t operator[](std::size_t i) const {
    return narrow() ? std::int32_t{two_bytes()[i]} : four_bytes()[i];
  }
  std::size_t bytes() const { return std::size_t{size} * id_bytes; }
  std::size_t units() const { return units_of(size, narrow()); }
  // Asks for its first lines; those behind follow by themselves, as reading goes on in a straight
  // line. (Always inlined: GCC takes a call that only prefetches for one without effect, and drops
  // it.)
  [[gnu::always_inline]] void prefetch() const {
    constexpr std::size_t kLine = 64;
    const auto* first = static_cast<const std::byte*>(data);
    const std::size_t end = std::min(bytes(), 16 * kLine);
    for (std::size_t at = 0; at < end; at += kLine) __builtin_prefetch(first + at);
  }
  std::vector<std::int32_t> ids() const {
    std::vector<std::int32_t> out(size);
    copy_to(out.data());
    return out;
  }
  void copy_to(std::int32_t* to) const {
    if (narrow()) {
      std::copy_n(two_bytes(), size, to);
    } else if (size > 0) {
      std::memcpy(to, data, bytes());
    }
  }
  bool equals(const std::int32_t* ids, std::size_t count) const {
    if (count != size) return false;
    return narrow() ? std::equal(ids, ids + count, two_bytes())
                    : std::equal(ids, ids + count, four_bytes());
  }

  static constexpr std::uint32_t bytes_per_id(bool narrow) { return narrow ? 2 : 4; }
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
    const Span out{place, static_cast<std::uint32_t>(size), bytes_per_id(narrow)};
    std::memset(static_cast<std::byte*>(place) + out.bytes(), 0, out.units() * kUnit - out.bytes());
    if (narrow) {
      std::transform(ids, ids + size, static_cast<std::uint16_t*>(place),
                     [](std::int32_t id) { return static_cast<std::uint16_t>(id); });
    } else if (size > 0) {
      std::memcpy(place, ids, out.bytes());
    }
    return out;
  }
};

// Where a table keeps a span, beside readers.
struct SpanEntry {
  // Null where a view has no list yet. Set once, after the rest (release), as a view's entries
  // are filled in any order beside readers who look whether they are there (acquire).
  std::atomic<const void*> data{nullptr};
  std::uint32_t size = 0;
  std::uint32_t id_bytes = 4;

  SpanEntry() = default;
  SpanEntry(const SpanEntry& other) { set(other.span()); }
  SpanEntry& operator=(const SpanEntry&) = delete;

  bool is_set() const { return data.load(std::memory_order_acquire) != nullptr; }
  Span span() const {
    const void* list = data.load(std::memory_order_acquire);
    if (list == nullptr) return {};
    return {list, size, id_bytes};
  }
  void set(const Span& span) {
    size = span.size;
    id_bytes = span.id_bytes;
    data.store(span.data, std::memory_order_release);
  }
};

// Where the next span of a prompt goes, and how many ids the prompt has by then.
struct SpanCursor {
  Span* at;
  std::size_t tokens;
  // An empty list takes no place. (A branch, which is foreseen: where the next one goes must not
  // wait for what this one reads.)
  void put(const SpanEntry& entry) {
    const Span span = entry.span();
    if (span.size == 0) return;
    *at++ = span;
    tokens += span.size;
  }
};

// A growing list of spans. Who adds to it asks for room once, then writes behind its end.
class Spans {
 public:
  std::size_t size() const { return size_; }
  const Span* begin() const { return list_.get(); }
  const Span* end() const { return begin() + size_; }
  void cut(std::size_t size) { size_ = size; }  // forgets what comes behind

  // At the end, with room for so many.
  SpanCursor start(std::size_t more) {
    if (size_ + more > room_) grow(size_ + more);
    return {list_.get() + size_, 0};
  }
  // From where it is.
  SpanCursor reserve(SpanCursor cursor, std::size_t more) {
    finish(cursor);
    return {start(more).at, cursor.tokens};
  }
  void finish(SpanCursor cursor) { size_ = static_cast<std::size_t>(cursor.at - list_.get()); }

 private:
  void grow(std::size_t need) {
    room_ = std::max(2 * room_, need);
    auto larger = std::make_unique_for_overwrite<Span[]>(room_);
    std::copy_n(list_.get(), size_, larger.get());
    list_ = std::move(larger);
  }
  std::unique_ptr<Span[]> list_;
  std::size_t size_ = 0;
  std::size_t room_ = 0;
};

}  // namespace sacglam::replay
