// A shared log of episodes: what producers in any process append, every process that samples
// follows into a store of its own.
//
// It holds the newest episodes, in segments that producers claim in the order of their tickets
// (replay_segment.hpp says why a reader never takes a torn word), and the interned tables. An
// episode is copied out once, whole and validated; what is sampled later is private memory, so
// that nothing another process does, or leaves undone, can touch a batch. Token ids, which are
// nearly all of the bytes, are not copied: texts stay where they are.
//
// Whatever lies in the memory, by another program's bug, is looked at before it is used, and what
// was looked at is a copy: sizes, indexes, ids. A batch may then hold wrong tokens, no more.
//
// No lock is shared between processes. Within one, threads that append use a segment each.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "replay_episode.hpp"
#include "replay_owner.hpp"
#include "replay_segment.hpp"
#include "replay_shared_table.hpp"

namespace sacglam::replay {

struct LogSizes {
  std::int64_t texts = 0;  // different texts, and different candidate sets, at most
  std::int64_t bytes = 0;  // of all their token ids, at most
};

class SharedLog {
 public:
  static constexpr std::size_t kProducers = 256;  // processes that produce at the same time
  static constexpr std::size_t kThreads = 64;     // of one process, appending at the same time

  // Throws when a living process has a buffer of this name; replaces that of a dead one.
  static std::unique_ptr<SharedLog> create(const std::string& name, const Settings& settings,
                                           std::uint64_t seed, const LogSizes& sizes);
  static std::unique_ptr<SharedLog> attach(const std::string& name) {
    Mapping::check_name(name);
    return std::unique_ptr<SharedLog>(new SharedLog(Mapping::open(name), false));
  }
  // Of the same memory, for a process that has just been forked: it must not touch what the
  // parent's object holds, a producer's open segments above all.
  std::unique_ptr<SharedLog> reattach() const {
    return std::unique_ptr<SharedLog>(new SharedLog(mapping_.duplicate(), false));
  }
  SharedLog(const SharedLog&) = delete;
  SharedLog& operator=(const SharedLog&) = delete;
  ~SharedLog();

  const std::string& name() const { return mapping_.name(); }
  const Settings& settings() const { return fixed_.settings; }
  std::uint64_t seed() const { return fixed_.seed; }
  SharedTable& texts() { return texts_; }
  SharedTable& sets() { return sets_; }
  std::uint64_t appended() const { return header_->next_episode.load(std::memory_order_relaxed); }
  void set_next(std::uint64_t id) { header_->next_episode.store(id, std::memory_order_relaxed); }
  std::size_t bytes() const { return arena_at(layout_) + arena_.bytes(); }

  // Whether an episode of so many steps and achievements fits a segment.
  bool fits(std::size_t steps, std::size_t events) const {
    return kEpisodeWords + 2 * steps + events <= layout_.segment_words;
  }
  // `input` has passed check(). Any thread of any process that has attached. Returns the id; with
  // `id`, the one that the episode had before (for loading, beside no other producer).
  std::uint64_t append(const EpisodeInput& input, std::optional<std::uint64_t> id = std::nullopt);

  // True when something was appended since follow() last began.
  bool has_news() const {
    return header_->bell.load(std::memory_order_acquire) != heard_.load(std::memory_order_relaxed);
  }
  // Calls `take(id, episode)` for each episode that is new to this object, those of one producer
  // in their order. One thread at a time. An episode that was overwritten before it was looked at
  // is not seen at all.
  template <class Take>
  void follow(const Take& take);

 private:
  using Word = std::atomic<std::uint64_t>;
  using Head = SegmentHead<DefaultSync>;
  static_assert(Word::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

  static constexpr std::uint64_t kMagic = 0x32474F4C47434153ULL;  // "SACGLOG2"
  static constexpr std::size_t kEpisodeWords = 4;

  static constexpr std::uint64_t kMostSegments = std::uint64_t{1} << 16;
  static constexpr std::int64_t kMostTexts = std::int64_t{1} << 30;
  static constexpr std::uint64_t kMostId = std::uint64_t{1} << 62;

  struct Layout {
    std::uint64_t segments, segment_words, texts, sets, arena_units;
  };
  struct Fixed {  // written once
    Layout layout;
    Settings settings;
    std::uint64_t seed;
  };
  struct Header {
    std::atomic<std::uint64_t> magic;  // stored last (release): all else is there
    std::atomic<std::uint64_t> creator;
    std::uint64_t name_space;
    std::uint64_t header_bytes;
    Fixed fixed;
    alignas(64) std::atomic<std::uint64_t> next_ticket;
    alignas(64) std::atomic<std::uint64_t> next_episode;
    alignas(64) std::atomic<std::uint64_t> bell;  // rung after every publication
    alignas(64) std::atomic<std::uint64_t> arena_next;
    std::atomic<std::uint32_t> text_count;
    std::atomic<std::uint32_t> set_count;
    std::array<std::atomic<std::uint64_t>, kProducers> producers;  // owners, 0 = free
  };
  static_assert(std::is_trivially_copyable_v<Settings>);

  // One appending thread's; the segment stays open between its episodes.
  struct Producer {
    std::atomic<bool> busy{false};
    bool open = false;
    std::size_t segment = 0;
    std::uint64_t ticket = 0;
    std::uint64_t used = 0;
  };
  struct Cursor {
    std::uint64_t fill = 0;
  };

  // Where each part begins, in bytes.
  static std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }
  static std::size_t heads_at() { return aligned(sizeof(Header)); }
  static std::size_t text_slots_at(const Layout& l) { return heads_at() + 64 * l.segments; }
  static std::size_t text_entries_at(const Layout& l) {
    return text_slots_at(l) + 8 * SharedTable::slots_for(l.texts);
  }
  static std::size_t set_slots_at(const Layout& l) {
    return aligned(text_entries_at(l) + 8 * l.texts);
  }
  static std::size_t set_entries_at(const Layout& l) {
    return set_slots_at(l) + 8 * SharedTable::slots_for(l.sets);
  }
  static std::size_t words_at(const Layout& l) { return aligned(set_entries_at(l) + 8 * l.sets); }
  static std::size_t arena_at(const Layout& l) {
    return aligned(words_at(l) + 8 * l.segments * l.segment_words);
  }
  static Layout layout_for(const Settings& settings, const LogSizes& sizes);

  SharedLog(Mapping mapping, bool creator);

  template <class T>
  T* at(std::size_t offset) const {
    return std::launder(reinterpret_cast<T*>(mapping_.data() + offset));
  }
  Segment<> segment(std::size_t i) const {
    return {*at<Head>(heads_at() + 64 * i),
            at<Word>(words_at(layout_)) + i * layout_.segment_words};
  }
  static Fixed checked(const Mapping& mapping);

  void require_own_process() const {
    if (::getpid() != pid_) {
      throw ReplayFault("the shared buffer '" + name() +
                        "' was opened before this process was forked: attach to it again");
    }
  }
  std::uint64_t slot();
  bool seal(std::size_t i, std::uint64_t seen);
  void seal_all_of(std::uint64_t slot, std::uint64_t owner);
  bool seal_if_dead(std::size_t i, std::uint64_t seen);
  void open_segment(Producer& p);
  Producer& take_producer();
  bool decode(const std::vector<std::uint64_t>& words, std::size_t& at, std::uint64_t& id,
              EpisodeInput& out) const;

  Mapping mapping_;
  const bool creator_;
  const pid_t pid_;
  const Fixed fixed_;
  Header* const header_;
  const Layout layout_;
  SharedArena arena_;
  SharedTable texts_, sets_;
  std::atomic<std::int64_t> slot_{-1};
  std::mutex registering_;  // this process's threads, once
  std::array<Producer, kThreads> producers_;
  std::vector<Cursor> cursors_;
  std::atomic<std::uint64_t> heard_{0};
};

}  // namespace sacglam::replay

#include "replay_log_impl.hpp"
