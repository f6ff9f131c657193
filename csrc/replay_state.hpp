// Everything that a checkpoint holds, and how it is written and read.
#pragma once

#include <climits>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <utility>
#include <vector>

#include "replay_file.hpp"
#include "replay_lifetimes.hpp"
#include "replay_sampler.hpp"

namespace sacglam::replay {

struct State {
  // With sources, the tables are views of them.
  State(const Settings& settings, std::uint64_t first_seed, Reclaimer& reclaimer,
        TableSource* texts = nullptr, TableSource* sets = nullptr)
      : tables(reclaimer, texts, sets, settings.capacity_bytes > 0),
        form(std::make_shared<Template>()),
        store(settings, reclaimer),
        seed(first_seed),
        capacity_bytes(static_cast<std::size_t>(settings.capacity_bytes)) {
    if (capacity_bytes > 0) lives = std::make_unique<Lifetimes>(tables);
    current_form.store(form.get(), std::memory_order_release);
  }
  Tables tables;
  std::shared_ptr<const Template> form;                // the writer's
  std::atomic<const Template*> current_form{nullptr};  // the readers'
  Store store;
  std::unique_ptr<Lifetimes> lives;  // null: texts are never freed
  std::uint64_t seed;
  std::uint64_t epoch = 0;                         // how often keys in use were made stale by load
  std::atomic<std::uint64_t> batches{0};           // the sampling counter
  std::atomic<std::uint64_t> sampled_rows{0};      // since the buffer was created
  std::atomic<std::uint64_t> relabeled_rows{0};    // of those
  std::atomic<std::uint64_t> stale_priorities{0};  // updates of what was gone, likewise
  std::atomic<std::uint64_t> redrawn_rows{0};      // overtaken by a writer, since creation or load

  const std::size_t capacity_bytes;  // 0: no limit

  // ---- with a limit; under both mutexes

  std::size_t content_bytes() const {
    return store.content_bytes() + tables.texts.live_bytes() + tables.sets.live_bytes();
  }
  // Frees what nothing needs; then, while there is no room for `more`, the oldest episodes go, all
  // but one. Whether there is room.
  bool make_room(std::size_t more) {
    lives->sweep(store.episodes().head());
    while (content_bytes() + more > capacity_bytes) {
      if (!store.evict()) return false;
      lives->sweep(store.episodes().head());
    }
    return true;
  }
  // What an episode takes if it is all that is stored.
  std::size_t bytes_of(const EpisodeInput& input) const;

  void set_form(Template next, Reclaimer& reclaimer) {
    if (lives) lives->hold(next.ops(), store.episodes().next());
    auto replacement = std::make_shared<const Template>(std::move(next));
    current_form.store(replacement.get(), std::memory_order_release);
    std::swap(form, replacement);
    reclaimer.retire(std::move(replacement));
  }
};

inline std::size_t State::bytes_of(const EpisodeInput& input) const {
  std::unordered_set<std::int32_t> texts(input.observations.begin(), input.observations.end());
  texts.insert(input.goal);
  texts.insert(input.achieved.begin(), input.achieved.end());
  std::size_t bytes = sizeof(Episode) + store.bytes_of(input.actions.size(), input.achieved.size());
  for (const std::int32_t id :
       std::unordered_set<std::int32_t>(input.candidates.begin(), input.candidates.end())) {
    const Span set = tables.sets[id];
    bytes += InternTable::bytes_of(set);
    for (std::size_t i = 0; i < set.size; ++i) texts.insert(set[i]);
  }
  for (const std::int32_t id : texts) bytes += InternTable::bytes_of(tables.texts[id]);
  return bytes;
}

// The lists of a table that a checkpoint holds, and the last use of each; only their end where
// none is freed.
struct TableSnapshot {
  std::int32_t end;  // the next id
  std::vector<std::pair<std::int32_t, std::uint64_t>> lists;

  template <class LastUse>
  TableSnapshot(const InternTable& table, const LastUse& last_use) : end(table.size()) {
    for (std::int32_t id = 0; table.frees() && id < end; ++id) {
      if (table.contains(id)) lists.emplace_back(id, last_use(id));
    }
  }
};

// What must be read under the writers' lock; everything else is read beside them.
struct Snapshot {
  std::uint64_t first_episode, end_episode, first_row, evicted_steps, next_label;
  std::uint64_t batches, sampled_rows, relabeled_rows;
  std::vector<std::int32_t> active_order;
  std::uint64_t largest_priority;
  std::vector<Op> ops;  // read before the tables are: what it names is in them
  TableSnapshot texts, sets;

  explicit Snapshot(const State& state)
      : first_episode(state.store.episodes().head()),
        end_episode(state.store.episodes().tail()),
        first_row(state.store.rows().head()),
        evicted_steps(state.store.evicted_steps()),
        next_label(state.store.next_label()),
        batches(state.batches.load(std::memory_order_relaxed)),
        sampled_rows(state.sampled_rows.load(std::memory_order_relaxed)),
        relabeled_rows(state.relabeled_rows.load(std::memory_order_relaxed)),
        active_order(state.store.active_order()),
        largest_priority(state.store.priorities() ? state.store.priorities()->largest() : 0),
        ops(state.current_form.load(std::memory_order_acquire)->ops()),
        texts(state.tables.texts,
              [&](std::int32_t id) { return state.lives ? state.lives->last_use_of_text(id) : 0; }),
        sets(state.tables.sets,
             [&](std::int32_t id) { return state.lives ? state.lives->last_use_of_set(id) : 0; }) {}
};

// In place of a list's size, in files before version 3: an id that nobody was given.
constexpr std::uint64_t kHole = ~std::uint64_t{0};

// Beside writers: a list that was freed meanwhile belongs to episodes that are gone as well.
inline void write_table(const InternTable& table, const TableSnapshot& snapshot, Writer& writer) {
  struct List {
    std::int32_t id;
    std::uint64_t last_use;
    Span span;
  };
  std::vector<List> there;
  const auto look = [&](std::int32_t id, std::uint64_t last_use) {
    const Span span = table[id];
    if (span.data != nullptr) there.push_back({id, last_use, span});
  };
  for (const auto& [id, last_use] : snapshot.lists) look(id, last_use);
  for (std::int32_t id = 0; !table.frees() && id < snapshot.end; ++id) look(id, 0);
  writer.put<std::uint64_t>(there.size());
  writer.put(snapshot.end);
  for (const auto& [id, last_use, span] : there) {
    const std::vector<std::int32_t> ids = span.ids();
    writer.put(id);
    writer.put(last_use);
    writer.put<std::uint64_t>(ids.size());
    writer.put_array(ids.data(), ids.size());
  }
}

inline void write_ops(const std::vector<Op>& ops, Writer& writer) {
  writer.put<std::uint64_t>(ops.size());
  for (const Op& op : ops) {
    writer.put<std::int32_t>(op.kind);
    writer.put<std::int32_t>(op.arg);
    if (op.kind == Op::kHistory) write_ops(op.body, writer);
  }
}

inline std::vector<Op> read_ops(Reader& reader, bool nested) {
  std::vector<Op> ops(reader.get_count(2 * sizeof(std::int32_t)));
  for (Op& op : ops) {
    const auto kind = reader.get<std::int32_t>();
    if (kind < Op::kLiteral || kind > Op::kAction || (nested && kind == Op::kHistory)) {
      Reader::fail();
    }
    op.kind = static_cast<Op::Kind>(kind);
    op.arg = reader.get<std::int32_t>();
    if (op.kind == Op::kHistory) op.body = read_ops(reader, true);
  }
  return ops;
}

// False when the episode was evicted before all of it was copied.
inline bool write_episode(const Store& store, const Contents& now, std::uint64_t id,
                          Writer& writer) {
  Episode e;
  if (!now.episodes.read(id, e)) return false;
  writer.put(e.label);
  writer.put(e.goal);
  writer.put(e.length);
  writer.put(e.events);
  writer.put(e.last_observation);
  writer.put(e.last_candidates);
  writer.put(e.terminated);
  writer.put(e.truncated);
  const StoredSteps steps(now, e);
  for (std::int32_t t = 0; t < e.length; ++t) {
    writer.put(steps.observation(t));
    writer.put(steps.candidates(t));
    writer.put(steps.action(t));
    writer.put(steps.reward(t));
  }
  for (std::uint64_t p = e.event_begin; p < e.event_begin + e.events; ++p) {
    const Event event = now.events.peek(p);
    writer.put(event.step);
    writer.put(event.goal);
  }
  for (std::int32_t t = 0; store.priorities() && t < e.length; ++t) {
    writer.put(store.priorities()->peek(e.row_begin + static_cast<std::uint64_t>(t)));
  }
  return now.episodes.still_live(id);
}

// Runs beside writers, inside a Reclaimer::Guard: holds every episode that the snapshot names,
// less those evicted while it copies.
inline Bytes write_state(const State& state, const Snapshot& snapshot, const Settings& settings) {
  const Store& store = state.store;
  const Contents now(store);
  // The tables first: the texts of an episode that is still there afterwards were there meanwhile.
  Bytes tables;
  Writer table_writer(tables);
  write_table(state.tables.texts, snapshot.texts, table_writer);
  write_table(state.tables.sets, snapshot.sets, table_writer);
  Bytes episodes;
  Writer body(episodes);
  std::uint64_t first = snapshot.first_episode;
  for (std::uint64_t id = first; id < snapshot.end_episode; ++id) {
    if (!write_episode(store, now, id, body)) {  // and so all before it are gone as well
      episodes.clear();
      first = id + 1;
    }
  }
  const bool whole = first == snapshot.first_episode;
  std::uint64_t evicted = snapshot.evicted_steps;
  Episode oldest;
  if (!whole && first < snapshot.end_episode && now.episodes.read(first, oldest)) {
    evicted += oldest.row_begin - snapshot.first_row;
  } else if (!whole) {
    evicted = store.rows().head() - snapshot.first_row + snapshot.evicted_steps;
  }

  Bytes out;
  Writer writer(out);
  writer.put(state.seed);
  writer.put(snapshot.batches);
  writer.put(snapshot.sampled_rows);
  writer.put(snapshot.relabeled_rows);
  out.insert(out.end(), tables.begin(), tables.end());
  write_ops(snapshot.ops, writer);
  writer.put<std::uint32_t>(store.priorities() ? 1 : 0);
  writer.put(store.priorities() ? store.priorities()->alpha() : 0.0);
  writer.put(snapshot.largest_priority);
  writer.put(evicted);
  writer.put(first);
  writer.put<std::uint64_t>(snapshot.end_episode - first);
  out.insert(out.end(), episodes.begin(), episodes.end());
  writer.put(static_cast<std::uint32_t>(settings.strategy));
  writer.put<std::uint32_t>(whole ? 1 : 0);
  // Of use with all of the episodes alone; and some of its goals may be gone otherwise.
  const std::size_t goals = whole ? snapshot.active_order.size() : 0;
  writer.put<std::uint64_t>(goals);
  writer.put_array(snapshot.active_order.data(), goals);
  writer.put(snapshot.next_label);
  return out;
}

inline void read_episode(Reader& reader, EpisodeInput& input) {
  input = EpisodeInput{};
  input.goal = reader.get<std::int32_t>();
  const auto length = reader.get<std::int32_t>();
  const auto events = reader.get<std::uint32_t>();
  if (length < 1) Reader::fail();
  const auto last_observation = reader.get<std::int32_t>();
  const auto last_candidates = reader.get<std::int32_t>();
  input.terminated = reader.get<std::uint8_t>() != 0;
  input.truncated = reader.get<std::uint8_t>() != 0;
  for (std::int32_t t = 0; t < length; ++t) {
    input.observations.push_back(reader.get<std::int32_t>());
    input.candidates.push_back(reader.get<std::int32_t>());
    input.actions.push_back(reader.get<std::int32_t>());
    input.rewards.push_back(reader.get<float>());
  }
  input.observations.push_back(last_observation);
  input.candidates.push_back(last_candidates);
  input.achieved_offsets.assign(static_cast<std::size_t>(length) + 1, 0);
  std::int32_t step = 0;
  for (std::uint32_t j = 0; j < events; ++j) {
    const auto at = reader.get<std::int32_t>();
    if (at < step || at >= length) Reader::fail();
    step = at;
    ++input.achieved_offsets[static_cast<std::size_t>(at) + 1];
    input.achieved.push_back(reader.get<std::int32_t>());
  }
  for (std::size_t t = 0; t < static_cast<std::size_t>(length); ++t) {
    input.achieved_offsets[t + 1] += input.achieved_offsets[t];
  }
}

// What the ids of a file's table are here: others where a shared table already held something, or
// where the file's had gaps and this one's ids have none.
class IdMap {
 public:
  void add(std::int32_t file, std::int32_t here) { ids_.emplace_back(file, here); }
  std::int32_t operator[](std::int32_t file) const {
    const auto place = static_cast<std::size_t>(file);
    if (file >= 0 && place < ids_.size() && ids_[place].first == file) return ids_[place].second;
    const auto found = std::lower_bound(ids_.begin(), ids_.end(), std::pair{file, INT32_MIN});
    if (found == ids_.end() || found->first != file) Reader::fail();
    return found->second;
  }
  bool may_add(std::int32_t file) const { return ids_.empty() || ids_.back().first < file; }

 private:
  std::vector<std::pair<std::int32_t, std::int32_t>> ids_;  // ascending
};

inline void map_literals(std::vector<Op>& ops, const IdMap& text_ids) {
  for (Op& op : ops) {
    if (op.kind == Op::kLiteral || op.kind == Op::kActions) op.arg = text_ids[op.arg];
    map_literals(op.body, text_ids);
  }
}

// Interns a table of a file here; `take(id, last_use)` is told each.
template <class Take>
IdMap read_table(Reader& reader, std::uint32_t version, Tables& tables, const IdMap* text_ids,
                 const Take& take) {
  InternTable& table = text_ids == nullptr ? tables.texts : tables.sets;
  IdMap here;
  const std::size_t lists = reader.get_count(sizeof(std::uint64_t));
  const std::int32_t end = version < 3 ? 0 : reader.get<std::int32_t>();
  for (std::size_t i = 0; i < lists; ++i) {
    const auto file_id = version < 3 ? static_cast<std::int32_t>(i) : reader.get<std::int32_t>();
    const auto last_use = version < 3 ? 0 : reader.get<std::uint64_t>();
    const auto size = reader.get<std::uint64_t>();
    if (version < 3 && size == kHole) continue;
    if (file_id < 0 || !here.may_add(file_id) || (version > 2 && file_id >= end) ||
        last_use > (std::uint64_t{1} << 62)) {
      Reader::fail();
    }
    if (table.frees()) table.skip_to(file_id);
    auto ids = reader.get_array<std::int32_t>(static_cast<std::size_t>(size));
    std::int32_t id = -1;
    if (text_ids == nullptr) {
      id = tables.intern_text(ids.data(), ids.size());
    } else {
      for (std::int32_t& text : ids) text = (*text_ids)[text];
      id = tables.intern_candidates(ids.data(), ids.size());
    }
    here.add(file_id, id);
    take(id, last_use);
  }
  if (table.frees() && version > 2) {
    if (end < 0) Reader::fail();
    table.skip_to(end);
  }
  return here;
}

struct LoadedEpisode {
  std::uint64_t label;
  EpisodeInput input;
};

// A sound checksum does not make contents trustworthy: all is validated like an insert. With
// `kept`, the episodes are also put there.
inline std::unique_ptr<State> read_state(const Checkpoint& file, const Settings& settings,
                                         std::unique_ptr<State> state, Reclaimer& reclaimer,
                                         std::vector<LoadedEpisode>* kept) try {
  Reader reader(file.payload.data(), file.payload.size());
  state->seed = reader.get<std::uint64_t>();
  state->batches = reader.get<std::uint64_t>();
  state->sampled_rows = reader.get<std::uint64_t>();
  state->relabeled_rows = reader.get<std::uint64_t>();
  Tables& tables = state->tables;
  Lifetimes* const lives = state->lives.get();
  const IdMap text_ids = read_table(reader, file.version, tables, nullptr,
                                    [&](std::int32_t id, std::uint64_t last_use) {
                                      if (lives != nullptr) lives->touch_text(id, last_use);
                                    });
  const IdMap set_ids = read_table(reader, file.version, tables, &text_ids,
                                   [&](std::int32_t id, std::uint64_t last_use) {
                                     if (lives != nullptr) lives->touch_set(id, last_use);
                                   });
  std::vector<Op> ops = read_ops(reader, false);
  map_literals(ops, text_ids);
  if (!ops.empty()) state->set_form(Template(std::move(ops), tables), reclaimer);
  Store& store = state->store;
  const bool ranked = file.version > 2 && reader.get<std::uint32_t>() != 0;
  const auto alpha = file.version > 2 ? reader.get<double>() : 0.0;
  const auto largest = file.version > 2 ? reader.get<std::uint64_t>() : 0;
  // Priorities of another exponent mean something else; all are as of new transitions then.
  Priorities* const priorities =
      ranked && store.priorities() && alpha == store.priorities()->alpha() ? store.priorities()
                                                                           : nullptr;
  const auto evicted = reader.get<std::uint64_t>();
  const auto first = reader.get<std::uint64_t>();
  if (first > (std::uint64_t{1} << 62) || evicted > (std::uint64_t{1} << 46)) Reader::fail();
  store.restart(first, evicted);
  const std::size_t episodes = reader.get_count(1);
  EpisodeInput input;
  for (std::size_t i = 0; i < episodes; ++i) {
    const std::uint64_t label = file.version == 1 ? first + i : reader.get<std::uint64_t>();
    if (label > (std::uint64_t{1} << 62)) Reader::fail();
    read_episode(reader, input);
    input.goal = text_ids[input.goal];
    for (std::int32_t& id : input.observations) id = text_ids[id];
    for (std::int32_t& id : input.achieved) id = text_ids[id];
    for (std::int32_t& id : input.candidates) id = set_ids[id];
    input.check(tables, settings.capacity);
    if (lives != nullptr) lives->touch(input, store.episodes().next());
    store.add(input, label);
    const std::uint64_t row = store.rows().next() - input.actions.size();
    for (std::size_t t = 0; ranked && t < input.actions.size(); ++t) {
      const auto value = reader.get<std::uint64_t>();
      if (value < 1 || value > Priorities::kMost) Reader::fail();
      if (priorities != nullptr) priorities->set(row + t, value);
    }
    if (kept != nullptr) kept->push_back({label, input});
  }
  const auto strategy = reader.get<std::uint32_t>();
  const bool whole = reader.get<std::uint32_t>() != 0;
  auto order = reader.get_array<std::int32_t>(reader.get_count(sizeof(std::int32_t)));
  for (std::int32_t& goal : order) goal = text_ids[goal];
  if (file.version > 1) {
    const auto next_label = reader.get<std::uint64_t>();
    if (next_label < store.next_label() || next_label > (std::uint64_t{1} << 62)) Reader::fail();
    store.set_next_label(next_label);
  }
  if (!reader.finished()) Reader::fail();
  if (lives != nullptr) state->make_room(0);
  if (priorities != nullptr) {
    if (largest < Priorities::kOne || largest > Priorities::kMost) Reader::fail();
    priorities->set_largest(largest);
  }
  // The order matters for a bit-identical continuation, and exists when nothing was changed.
  const bool same = whole && strategy == static_cast<std::uint32_t>(settings.strategy) &&
                    store.evicted_steps() == evicted;
  if (same && !store.reorder_active_goals(order)) Reader::fail();
  return state;
} catch (const ReplayFault& fault) {
  throw CheckpointFault(std::string("the replay checkpoint does not fit this buffer: ") +
                        fault.what());
}

}  // namespace sacglam::replay
