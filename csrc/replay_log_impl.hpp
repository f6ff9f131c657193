// How the shared log is laid out, claimed, appended to and followed.
#pragma once

#include "replay_log.hpp"

namespace sacglam::replay {

inline SharedLog::Layout SharedLog::layout_for(const Settings& settings, const LogSizes& sizes) {
  // Two words a step, and room for as much again of events and headers; half as many segments
  // more than a full buffer needs, since each producer keeps one that it fills.
  constexpr std::uint64_t kSegments = 96;
  constexpr std::uint64_t kInUse = 64;
  const auto capacity = static_cast<std::uint64_t>(settings.capacity);
  Layout l{};
  l.segments = kSegments;
  l.segment_words = std::clamp<std::uint64_t>(capacity * 4 / kInUse, 1024, Fill::kMost);
  l.texts = static_cast<std::uint64_t>(sizes.texts);
  l.sets = l.texts;
  l.arena_units = static_cast<std::uint64_t>(sizes.bytes) / SharedArena::kUnit;
  return l;
}

inline std::unique_ptr<SharedLog> SharedLog::create(const std::string& name,
                                                    const Settings& settings, std::uint64_t seed,
                                                    const LogSizes& sizes) {
  Mapping::check_name(name);
  if (sizes.texts < 16 || sizes.texts > kMostTexts || sizes.bytes < (1 << 20) ||
      sizes.bytes > (std::int64_t{1} << 37)) {
    throw ReplayFault("shared_texts must be in [16, 2^30] and shared_bytes in [2^20, 2^37]");
  }
  const auto may_replace = [&](const Mapping& old) {
    if (old.bytes() < sizeof(Header)) return;
    const auto* header = reinterpret_cast<const Header*>(old.data());
    const Owner creator{header->creator.load(std::memory_order_acquire)};
    if (header->name_space != 0 && header->name_space != Owner::name_space()) {
      throw ReplayFault("a shared buffer '" + name +
                        "' exists, made in another pid namespace (container), whose processes "
                        "cannot be seen here: choose another name, or if none of them uses it any "
                        "more, remove /dev/shm/sacglam-" +
                        name);
    }
    if (!creator.is_dead()) {
      throw ReplayFault("a shared buffer '" + name + "' exists, made by process " +
                        std::to_string(creator.pid()) +
                        ", which lives: attach to it, or choose another name");
    }
  };
  const Layout layout = layout_for(settings, sizes);
  const std::size_t fixed = arena_at(layout);
  Mapping mapping =
      Mapping::create(name, fixed + layout.arena_units * SharedArena::kUnit, may_replace);
  try {
    mapping.reserve(0, fixed);
  } catch (...) {
    Mapping::unlink(name);
    throw;
  }
  auto* header = new (mapping.data()) Header{};
  header->creator.store(Owner::self().word, std::memory_order_release);
  header->name_space = Owner::name_space();
  header->header_bytes = sizeof(Header);
  header->fixed = {layout, settings, seed};
  header->next_ticket.store(1, std::memory_order_relaxed);
  // Release: whoever finds the magic number (acquire, in checked) finds the rest.
  header->magic.store(kMagic, std::memory_order_release);
  mapping.publish();
  return std::unique_ptr<SharedLog>(new SharedLog(std::move(mapping), true));
}

inline SharedLog::Fixed SharedLog::checked(const Mapping& mapping) {
  const auto refuse = [&](const std::string& why) {
    throw ReplayFault("cannot attach to the shared buffer '" + mapping.name() + "': " + why);
  };
  if (mapping.bytes() < sizeof(Header)) refuse("it is too small");
  const auto& header = *reinterpret_cast<const Header*>(mapping.data());
  if (header.magic.load(std::memory_order_acquire) != kMagic ||
      header.header_bytes != sizeof(Header)) {
    refuse("it is not ready, or another version of sacglam made it");
  }
  if (header.name_space != Owner::name_space()) {
    refuse("it was made in another pid namespace (container), whose processes cannot be seen here");
  }
  // The copy is what is looked at and used: another process may write there by a bug.
  Fixed fixed = header.fixed;
  const Layout& l = fixed.layout;
  const auto most = std::uint64_t{1} << 40;  // nothing overflows below
  if (l.segments == 0 || l.segments > kMostSegments || l.segment_words > Fill::kMost ||
      l.texts > kMostTexts || l.sets > kMostTexts || l.arena_units > most ||
      arena_at(l) + l.arena_units * SharedArena::kUnit != mapping.bytes()) {
    refuse("its sizes do not add up");
  }
  if (!fixed.settings.are_sound() || fixed.settings.capacity_bytes > 0) {
    refuse("its settings are out of range");
  }
  return fixed;
}

inline SharedLog::SharedLog(Mapping mapping, bool creator)
    : mapping_(std::move(mapping)),
      creator_(creator),
      pid_(::getpid()),
      fixed_(checked(mapping_)),
      header_(at<Header>(0)),
      layout_(fixed_.layout),
      arena_(mapping_, header_->arena_next, arena_at(layout_)),
      texts_({&header_->text_count, at<Word>(text_slots_at(layout_)),
              at<Word>(text_entries_at(layout_)), layout_.texts,
              SharedTable::slots_for(layout_.texts)},
             arena_, "texts"),
      sets_({&header_->set_count, at<Word>(set_slots_at(layout_)),
             at<Word>(set_entries_at(layout_)), layout_.sets, SharedTable::slots_for(layout_.sets)},
            arena_, "candidate sets"),
      cursors_(layout_.segments) {}

inline SharedLog::~SharedLog() {
  if (::getpid() != pid_) return;  // a forked copy owns nothing
  const std::int64_t mine = slot_.load(std::memory_order_acquire);
  if (mine >= 0) {
    for (Producer& p : producers_) {
      if (p.open) {
        seal(p.segment, Control::pack(p.ticket, static_cast<std::uint64_t>(mine), true));
      }
    }
    header_->producers[static_cast<std::size_t>(mine)].store(0, std::memory_order_release);
  }
  // Somebody may have removed the file, and made another.
  if (creator_ && mapping_.has_its_name()) Mapping::unlink(name());
}

// ---- producers

// Segments are written again in the order of their tickets, which say when each was opened. One
// that a slow producer kept open holds newer episodes than its ticket says: it is spared once, so
// that two thirds of the log have their turn before whatever is sealed here goes.
inline bool SharedLog::seal(std::size_t i, std::uint64_t seen) {
  const std::uint64_t next = header_->next_ticket.load(std::memory_order_relaxed);
  return segment(i).seal(seen, next - Control::ticket(seen) > layout_.segments / 3);
}

// Seals segment `i` if `seen`, its control word, names an owner that is certainly dead.
inline bool SharedLog::seal_if_dead(std::size_t i, std::uint64_t seen) {
  const std::uint64_t slot = Control::slot(seen);
  if (slot >= kProducers) return seal(i, seen);  // garbage, which nobody owns
  const std::uint64_t owner = header_->producers[slot].load(std::memory_order_acquire);
  // A slot changes hands only after all segments of its dead owner were sealed, and `seen` was
  // read before the slot (acquire): if the slot names somebody new, the exchange below fails, as
  // it does when anybody else has sealed or claimed the segment.
  if (!Owner{owner}.is_dead()) return false;
  return seal(i, seen);
}

inline void SharedLog::seal_all_of(std::uint64_t slot, std::uint64_t owner) {
  for (std::size_t i = 0; i < layout_.segments; ++i) {
    const std::uint64_t seen = segment(i).control();
    if (!Control::is_open(seen) || Control::slot(seen) != slot) continue;
    // If `seen` is of a new owner of the slot, its taking of the slot happened before (acquire).
    if (header_->producers[slot].load(std::memory_order_acquire) != owner) return;
    seal(i, seen);
  }
}

// This process's place among the producers.
inline std::uint64_t SharedLog::slot() {
  std::int64_t mine = slot_.load(std::memory_order_acquire);
  if (mine >= 0) return static_cast<std::uint64_t>(mine);
  const std::lock_guard lock(registering_);
  mine = slot_.load(std::memory_order_relaxed);
  if (mine >= 0) return static_cast<std::uint64_t>(mine);
  const std::uint64_t self = Owner::self().word;
  for (const bool of_the_dead : {false, true}) {
    for (std::size_t i = 0; i < kProducers; ++i) {
      std::uint64_t owner = header_->producers[i].load(std::memory_order_acquire);
      if (owner != 0) {
        if (!of_the_dead || !Owner{owner}.is_dead()) continue;
        seal_all_of(i, owner);
      }
      if (header_->producers[i].compare_exchange_strong(owner, self, std::memory_order_acq_rel)) {
        slot_.store(static_cast<std::int64_t>(i), std::memory_order_release);
        return i;
      }
    }
  }
  throw ReplayFault("the shared buffer '" + name() + "' has " + std::to_string(kProducers) +
                    " living producers already");
}

inline void SharedLog::open_segment(Producer& p) {
  const std::uint64_t mine = slot();
  if (p.open) seal(p.segment, Control::pack(p.ticket, mine, true));
  p.open = false;
  for (std::size_t tries = 0; tries < 4 * layout_.segments; ++tries) {
    const std::uint64_t ticket = header_->next_ticket.fetch_add(1, std::memory_order_relaxed);
    const auto i = static_cast<std::size_t>(ticket % layout_.segments);
    std::uint64_t seen = segment(i).control();
    if (Control::is_open(seen)) {
      if (!seal_if_dead(i, seen)) continue;  // its owner is slow, not gone
      seen = segment(i).control();
    }
    if (Control::is_open(seen) || Control::ticket(seen) >= ticket) continue;
    if (Control::is_spared(seen)) {
      segment(i).unspare(seen);
      continue;
    }
    if (!segment(i).claim(seen, ticket, mine)) continue;
    p.segment = i;
    p.ticket = ticket;
    p.used = 0;
    p.open = true;
    return;
  }
  throw ReplayFault("the shared buffer '" + name() + "' has no segment left: " +
                    std::to_string(layout_.segments) + " are held by living producers");
}

// A thread finds its own again when no other took it meanwhile; nobody waits for anybody.
inline SharedLog::Producer& SharedLog::take_producer() {
  for (Producer& p : producers_) {
    // Acquire: pairs with the release at the end of append().
    if (!p.busy.load(std::memory_order_relaxed) &&
        !p.busy.exchange(true, std::memory_order_acquire)) {
      return p;
    }
  }
  throw ReplayFault("more than " + std::to_string(kThreads) +
                    " threads of one process append to the shared buffer '" + name() + "' at once");
}

inline std::uint64_t SharedLog::append(const EpisodeInput& input,
                                       std::optional<std::uint64_t> given) {
  require_own_process();
  const std::size_t length = input.actions.size();
  thread_local std::vector<std::uint64_t> words;
  words.assign(kEpisodeWords, 0);
  const auto pair = [](std::int32_t low, std::int32_t high) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(low)) |
           static_cast<std::uint64_t>(static_cast<std::uint32_t>(high)) << 32;
  };
  for (std::size_t t = 0; t < length; ++t) {
    words.push_back(pair(input.observations[t], input.candidates[t]));
    words.push_back(pair(input.actions[t], std::bit_cast<std::int32_t>(input.rewards[t])));
  }
  std::size_t events = 0;
  for (std::size_t t = 0; t < length; ++t) {
    const auto end = static_cast<std::size_t>(input.achieved_offsets[t + 1]);
    for (auto j = static_cast<std::size_t>(input.achieved_offsets[t]); j < end; ++j, ++events) {
      words.push_back(pair(input.achieved[j], static_cast<std::int32_t>(t)));
    }
  }
  if (words.size() > layout_.segment_words) {
    throw ReplayFault("an episode of " + std::to_string(length) + " transitions and " +
                      std::to_string(events) + " achievements takes " +
                      std::to_string(words.size()) +
                      " words, and a segment of this shared "
                      "buffer holds " +
                      std::to_string(layout_.segment_words) +
                      "; raise the capacity, or have episodes split by long_episodes=\"split\"");
  }
  words[1] = pair(input.goal, static_cast<std::int32_t>(length));
  words[2] = pair(input.observations[length], input.candidates[length]);
  words[3] = pair(static_cast<std::int32_t>(events),
                  (input.terminated ? 1 : 0) | (input.truncated ? 2 : 0));

  Producer& p = take_producer();
  struct Done {
    std::atomic<bool>& busy;
    ~Done() { busy.store(false, std::memory_order_release); }
  } const done{p.busy};
  if (!p.open || p.used + words.size() > layout_.segment_words) open_segment(p);
  if (given) {
    header_->next_episode.store(*given + 1, std::memory_order_relaxed);
  }
  const std::uint64_t id =
      given ? *given : header_->next_episode.fetch_add(1, std::memory_order_relaxed);
  if (id > kMostId) {
    throw ReplayFault("the memory of the shared buffer '" + name() +
                      "' is damaged: it counts more episodes than there can be");
  }
  words[0] = id;
  Segment<> to = segment(p.segment);
  for (std::size_t i = 0; i < words.size(); ++i) to.put(p.used + i, words[i]);
  p.used += words.size();
  to.publish(p.ticket, p.used);
  // Release: whoever hears the bell (acquire, in has_news) sees the fill. Who dies before it is
  // heard with the next one.
  header_->bell.fetch_add(1, std::memory_order_release);
  return id;
}

// ---- followers

// Words that a fill covers are whole, but another program's bug could have put anything there.
inline bool SharedLog::decode(const std::vector<std::uint64_t>& words, std::size_t& at,
                              std::uint64_t& id, EpisodeInput& out) const {
  const auto low = [](std::uint64_t w) { return static_cast<std::int32_t>(w & 0xFFFFFFFF); };
  const auto high = [](std::uint64_t w) { return static_cast<std::int32_t>(w >> 32); };
  if (words.size() - at < kEpisodeWords) return false;
  const std::uint64_t* w = words.data() + at;
  id = w[0];
  const std::int64_t length = high(w[1]);
  const std::int64_t events = low(w[3]);
  const std::int64_t size = static_cast<std::int64_t>(kEpisodeWords) + 2 * length + events;
  if (id > kMostId || length < 1 || events < 0 ||
      size > static_cast<std::int64_t>(words.size() - at)) {
    return false;
  }
  at += static_cast<std::size_t>(size);
  out.goal = low(w[1]);
  out.terminated = (high(w[3]) & 1) != 0;
  out.truncated = (high(w[3]) & 2) != 0;
  const auto n = static_cast<std::size_t>(length);
  out.observations.resize(n + 1);
  out.candidates.resize(n + 1);
  out.actions.resize(n);
  out.rewards.resize(n);
  const std::uint64_t* row = w + kEpisodeWords;
  for (std::size_t t = 0; t < n; ++t) {
    out.observations[t] = low(row[2 * t]);
    out.candidates[t] = high(row[2 * t]);
    out.actions[t] = low(row[2 * t + 1]);
    out.rewards[t] = std::bit_cast<float>(high(row[2 * t + 1]));
  }
  out.observations[n] = low(w[2]);
  out.candidates[n] = high(w[2]);
  out.achieved_offsets.assign(n + 1, 0);
  out.achieved.resize(static_cast<std::size_t>(events));
  const std::uint64_t* event = row + 2 * n;
  std::int32_t step = 0;
  for (std::size_t j = 0; j < out.achieved.size(); ++j) {
    out.achieved[j] = low(event[j]);
    if (high(event[j]) < step || high(event[j]) >= length) return false;
    step = high(event[j]);
    ++out.achieved_offsets[static_cast<std::size_t>(step) + 1];
  }
  for (std::size_t t = 0; t < n; ++t) out.achieved_offsets[t + 1] += out.achieved_offsets[t];
  return true;
}

template <class Take>
void SharedLog::follow(const Take& take) {
  require_own_process();
  // Before the segments are looked at: what is published meanwhile rings again.
  heard_.store(header_->bell.load(std::memory_order_acquire), std::memory_order_relaxed);
  struct New {
    std::uint64_t ticket;
    std::uint64_t fill;
    std::size_t segment;
  };
  std::vector<New> fresh;
  for (std::size_t i = 0; i < layout_.segments; ++i) {
    const std::uint64_t fill = segment(i).fill();
    if (fill == cursors_[i].fill || Fill::count(fill) == 0) continue;
    const std::uint64_t ticket = Control::ticket(segment(i).control());
    if (Fill::belongs_to(fill, ticket)) fresh.push_back({ticket, fill, i});
  }
  std::sort(fresh.begin(), fresh.end(),
            [](const New& a, const New& b) { return a.ticket < b.ticket; });
  std::vector<std::uint64_t> words;
  EpisodeInput episode;
  for (const New& n : fresh) {
    std::uint64_t& seen = cursors_[n.segment].fill;
    const std::uint64_t begin = Fill::belongs_to(seen, n.ticket) ? Fill::count(seen) : 0;
    const std::uint64_t end = std::min(Fill::count(n.fill), layout_.segment_words);
    const Segment<> from = segment(n.segment);
    seen = n.fill;
    if (begin >= end) continue;  // a fill never shrinks, unless something else wrote it
    words.resize(end - begin);
    for (std::uint64_t i = begin; i < end; ++i) words[i - begin] = from.peek(i);
    if (!from.still(n.ticket)) continue;  // overwritten by now
    std::size_t at = 0;
    std::uint64_t id = 0;
    while (at < words.size() && decode(words, at, id, episode)) take(id, episode);
  }
}

}  // namespace sacglam::replay
