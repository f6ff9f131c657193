// The replay buffer: text transitions as interned token ids, hindsight on sampling, prompts
// assembled natively. Pure C++20, no Python.
//
// Threads: any number may call any method. One mutex, here, guards all state; samplers hold it
// while they draw, not while they copy tokens: interned data never moves, and a sampler keeps
// the state that it drew from alive.
#pragma once

#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "replay_file.hpp"
#include "replay_sampler.hpp"

namespace sacglam::replay {

// Everything that a checkpoint holds.
struct State {
  State(const Settings& settings, std::uint64_t first_seed)
      : store(settings.capacity, settings.strategy), seed(first_seed) {}
  Tables tables;
  Template form;
  Store store;
  std::uint64_t seed;
  std::uint64_t batches = 0;         // the sampling counter
  std::uint64_t sampled_rows = 0;    // since the buffer was created
  std::uint64_t relabeled_rows = 0;  // of those
};

void write_state(const State& state, const Settings& settings, Bytes& out);
std::shared_ptr<State> read_state(const Bytes& payload, const Settings& settings);

// Where a batch of B rows goes; offsets have B + 1 entries.
struct BatchArrays {
  std::int32_t* prompt_ids;
  std::int64_t* prompt_offsets;
  std::int32_t* candidates;
  std::int32_t* next_prompt_ids;
  std::int64_t* next_prompt_offsets;
  std::int32_t* next_candidates;
  std::int32_t* action;
  float* n_step_return;
  float* discount;
  float* weight;
  std::int32_t* steps;
  std::int32_t* goal;
  std::uint8_t* relabeled;
  std::int64_t* episode;
  std::int32_t* step;
};

struct Stats {
  std::uint64_t steps, episodes, evicted_steps, goals, bytes, samples, batches, texts, sets;
  double her_share;
};

class ReplayBuffer {
 public:
  static constexpr std::size_t kUnlimited = ~std::size_t{0};

  ReplayBuffer(const Settings& settings, std::uint64_t seed)
      : settings_(settings), state_(std::make_shared<State>(settings, seed)) {}

  std::int32_t intern_text(const std::vector<std::int32_t>& ids) {
    const std::lock_guard lock(mutex_);
    return state_->tables.intern_text(ids.data(), ids.size());
  }
  std::int32_t intern_candidates(const std::vector<std::int32_t>& ids) {
    const std::lock_guard lock(mutex_);
    return state_->tables.intern_candidates(ids.data(), ids.size());
  }
  std::vector<std::int32_t> text(std::int32_t id) const {
    const std::lock_guard lock(mutex_);
    state_->tables.require_text(id, "text");
    const Span span = state_->tables.texts[id];
    return {span.data, span.data + span.size};
  }
  std::vector<std::int32_t> candidate_set(std::int32_t id) const {
    const std::lock_guard lock(mutex_);
    state_->tables.require_set(id, "candidates");
    const Span span = state_->tables.sets[id];
    return {span.data, span.data + span.size};
  }
  void set_template(std::vector<Op> ops) {
    const std::lock_guard lock(mutex_);
    state_->form = Template(std::move(ops), state_->tables);
  }

  std::int64_t add_episode(const EpisodeInput& input) {
    const std::lock_guard lock(mutex_);
    input.check(state_->tables, settings_.capacity);
    return state_->store.add(input);
  }

  // The prompt at step t of an episode that is still running.
  std::vector<std::int32_t> assemble(std::int32_t goal,
                                     const std::vector<std::int32_t>& observations,
                                     const std::vector<std::int32_t>& candidates,
                                     const std::vector<std::int32_t>& actions,
                                     std::int64_t t) const;

  // First half of sampling: draws the rows. When a prompt array cannot hold what was drawn,
  // throws, and the same batch is drawn by the next call.
  std::shared_ptr<const State> plan(std::size_t rows, std::size_t prompt_room,
                                    std::size_t next_room, Plan& out);
  // Second half, without the lock: copies. `state` is what plan() returned.
  static void fill(const Plan& plan, const BatchArrays& to);

  void save(const std::string& path) const {
    Bytes payload;
    {
      const std::lock_guard lock(mutex_);
      write_state(*state_, settings_, payload);
    }
    write_checkpoint(path, payload);
  }
  void load(const std::string& path) {
    const Bytes payload = read_checkpoint(path);
    std::shared_ptr<State> loaded = read_state(payload, settings_);
    const std::lock_guard lock(mutex_);
    state_.swap(loaded);
  }
  Stats stats() const;

 private:
  const Settings settings_;
  mutable std::mutex mutex_;
  std::shared_ptr<State> state_;
};

inline std::shared_ptr<const State> ReplayBuffer::plan(std::size_t rows, std::size_t prompt_room,
                                                       std::size_t next_room, Plan& out) {
  const std::lock_guard lock(mutex_);
  State& state = *state_;
  if (state.form.empty()) throw ReplayFault("no template is set: call set_template first");
  if (state.store.rows().size() == 0) {
    throw ReplayFault("the buffer is empty: add an episode before sampling");
  }
  Sampler(settings_, state.store, state.tables, state.form)
      .plan(rows, state.seed, state.batches, out);
  const auto require_room = [](const char* name, std::size_t room, std::size_t need) {
    if (need > room) {
      throw ReplayFault(std::string("out.") + name + " holds " + std::to_string(room) +
                        " token ids, this batch needs " + std::to_string(need) +
                        "; give a larger array, the same batch is drawn again");
    }
  };
  require_room("prompt_ids", prompt_room, out.prompt_tokens);
  require_room("next_prompt_ids", next_room, out.next_tokens);
  ++state.batches;
  state.sampled_rows += rows;
  state.relabeled_rows += out.relabeled;
  return state_;
}

inline void ReplayBuffer::fill(const Plan& plan, const BatchArrays& to) {
  const auto copy = [](const std::vector<Span>& spans, std::int32_t* place) {
    for (const Span& span : spans) {
      std::memcpy(place, span.data, span.size * sizeof(std::int32_t));
      place += span.size;
    }
  };
  copy(plan.prompt_spans, to.prompt_ids);
  copy(plan.next_spans, to.next_prompt_ids);
  std::int64_t prompt_end = 0;
  std::int64_t next_end = 0;
  to.prompt_offsets[0] = to.next_prompt_offsets[0] = 0;
  for (std::size_t i = 0; i < plan.rows.size(); ++i) {
    const PlannedRow& row = plan.rows[i];
    prompt_end += static_cast<std::int64_t>(row.prompt_tokens);
    next_end += static_cast<std::int64_t>(row.next_tokens);
    to.prompt_offsets[i + 1] = prompt_end;
    to.next_prompt_offsets[i + 1] = next_end;
    to.candidates[i] = row.candidates;
    to.next_candidates[i] = row.next_candidates;
    to.action[i] = row.action;
    to.n_step_return[i] = row.n_step_return;
    to.discount[i] = row.discount;
    to.weight[i] = 1.0F;
    to.steps[i] = row.steps;
    to.goal[i] = row.draw.goal;
    to.relabeled[i] = row.draw.relabeled ? 1 : 0;
    to.episode[i] = row.draw.episode;
    to.step[i] = row.draw.step;
  }
}

inline std::vector<std::int32_t> ReplayBuffer::assemble(
    std::int32_t goal, const std::vector<std::int32_t>& observations,
    const std::vector<std::int32_t>& candidates, const std::vector<std::int32_t>& actions,
    std::int64_t t) const {
  struct RunningSteps {
    const std::vector<std::int32_t>&observations_, &candidates_, &actions_;
    std::int32_t observation(std::int32_t i) const {
      return observations_[static_cast<std::size_t>(i)];
    }
    std::int32_t candidates(std::int32_t i) const {
      return candidates_[static_cast<std::size_t>(i)];
    }
    std::int32_t action(std::int32_t i) const { return actions_[static_cast<std::size_t>(i)]; }
  };
  const auto steps = static_cast<std::int64_t>(std::min(observations.size(), candidates.size()));
  if (t < 0 || t >= steps || t > static_cast<std::int64_t>(actions.size())) {
    throw ReplayFault("step t = " + std::to_string(t) + " needs t + 1 observations and " +
                      "candidates and t actions; given " + std::to_string(observations.size()) +
                      ", " + std::to_string(candidates.size()) + " and " +
                      std::to_string(actions.size()));
  }
  const std::lock_guard lock(mutex_);
  const Tables& tables = state_->tables;
  if (state_->form.empty()) throw ReplayFault("no template is set: call set_template first");
  tables.require_text(goal, "goal");
  for (std::size_t i = 0; i <= static_cast<std::size_t>(t); ++i) {
    tables.require_text(observations[i], "observations");
    tables.require_set(candidates[i], "candidates");
    if (i == static_cast<std::size_t>(t)) break;
    const std::size_t choices = tables.sets[candidates[i]].size;
    if (actions[i] < 0 || static_cast<std::size_t>(actions[i]) >= choices) {
      throw ReplayFault("actions[" + std::to_string(i) + "] is " + std::to_string(actions[i]) +
                        ", but that step has " + std::to_string(choices) + " candidates");
    }
  }
  std::vector<Span> spans;
  std::vector<std::int32_t> out;
  out.reserve(state_->form.emit(tables, RunningSteps{observations, candidates, actions},
                                static_cast<std::int32_t>(t), goal, spans));
  for (const Span& span : spans) out.insert(out.end(), span.data, span.data + span.size);
  return out;
}

inline Stats ReplayBuffer::stats() const {
  const std::lock_guard lock(mutex_);
  const State& s = *state_;
  Stats out{};
  out.steps = s.store.rows().size();
  out.episodes = s.store.episodes().size();
  out.evicted_steps = s.store.evicted_steps();
  out.goals = s.store.active_goals().size();
  out.bytes = s.store.bytes() + s.tables.texts.bytes() + s.tables.sets.bytes();
  out.samples = s.sampled_rows;
  out.batches = s.batches;
  out.texts = static_cast<std::uint64_t>(s.tables.texts.size());
  out.sets = static_cast<std::uint64_t>(s.tables.sets.size());
  out.her_share = s.sampled_rows == 0
                      ? 0.0
                      : static_cast<double>(s.relabeled_rows) / static_cast<double>(s.sampled_rows);
  return out;
}

inline void write_table(const InternTable& table, Writer& writer) {
  writer.put<std::uint64_t>(static_cast<std::uint64_t>(table.size()));
  for (std::int32_t id = 0; id < table.size(); ++id) {
    const Span span = table[id];
    writer.put<std::uint64_t>(span.size);
    writer.put_array(span.data, span.size);
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

inline void write_state(const State& state, const Settings& settings, Bytes& out) {
  Writer writer(out);
  const Store& store = state.store;
  writer.put(state.seed);
  writer.put(state.batches);
  writer.put(state.sampled_rows);
  writer.put(state.relabeled_rows);
  write_table(state.tables.texts, writer);
  write_table(state.tables.sets, writer);
  write_ops(state.form.ops(), writer);
  writer.put(store.evicted_steps());
  writer.put(static_cast<std::int64_t>(store.episodes().head()));
  writer.put<std::uint64_t>(store.episodes().size());
  for (std::uint64_t id = store.episodes().head(); id != store.episodes().tail(); ++id) {
    const Episode& e = store.episodes()[id];
    writer.put(e.goal);
    writer.put(e.length);
    writer.put(e.events);
    writer.put(e.last_observation);
    writer.put(e.last_candidates);
    writer.put(e.terminated);
    writer.put(e.truncated);
    for (std::uint64_t r = e.row_begin; r < e.row_begin + static_cast<std::uint64_t>(e.length);
         ++r) {
      const Row& row = store.rows()[r];
      writer.put(row.observation);
      writer.put(row.candidates);
      writer.put(row.action);
      writer.put(row.reward);
    }
    for (std::uint64_t p = e.event_begin; p < e.event_begin + e.events; ++p) {
      writer.put(store.events()[p].step);
      writer.put(store.events()[p].goal);
    }
  }
  writer.put(static_cast<std::uint32_t>(settings.strategy));
  writer.put<std::uint64_t>(store.active_goals().size());
  writer.put_array(store.active_goals().data(), store.active_goals().size());
}

// A sound checksum does not make contents trustworthy: all is validated like an insert.
inline std::shared_ptr<State> read_state(const Bytes& payload, const Settings& settings) try {
  Reader reader(payload.data(), payload.size());
  auto state = std::make_shared<State>(settings, reader.get<std::uint64_t>());
  state->batches = reader.get<std::uint64_t>();
  state->sampled_rows = reader.get<std::uint64_t>();
  state->relabeled_rows = reader.get<std::uint64_t>();
  Tables& tables = state->tables;
  for (const bool texts : {true, false}) {
    const std::size_t count = reader.get_count(sizeof(std::uint64_t));
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t size = reader.get_count(sizeof(std::int32_t));
      const auto ids = reader.get_array<std::int32_t>(size);
      const std::int32_t id =
          texts ? tables.intern_text(ids.data(), size) : tables.intern_candidates(ids.data(), size);
      if (static_cast<std::size_t>(id) != i) Reader::fail();
    }
  }
  std::vector<Op> ops = read_ops(reader, false);
  if (!ops.empty()) state->form = Template(std::move(ops), tables);
  Store& store = state->store;
  const auto evicted = reader.get<std::uint64_t>();
  const auto first = reader.get<std::int64_t>();
  if (first < 0) Reader::fail();
  store.restart(first);
  store.set_evicted_steps(evicted);
  const std::size_t episodes = reader.get_count(1);
  EpisodeInput input;
  for (std::size_t i = 0; i < episodes; ++i) {
    input.goal = reader.get<std::int32_t>();
    const auto length = reader.get<std::int32_t>();
    const auto events = reader.get<std::uint32_t>();
    if (length < 1) Reader::fail();
    const auto last_observation = reader.get<std::int32_t>();
    const auto last_candidates = reader.get<std::int32_t>();
    input.terminated = reader.get<std::uint8_t>() != 0;
    input.truncated = reader.get<std::uint8_t>() != 0;
    input.observations.clear();
    input.candidates.clear();
    input.actions.clear();
    input.rewards.clear();
    for (std::int32_t t = 0; t < length; ++t) {
      input.observations.push_back(reader.get<std::int32_t>());
      input.candidates.push_back(reader.get<std::int32_t>());
      input.actions.push_back(reader.get<std::int32_t>());
      input.rewards.push_back(reader.get<float>());
    }
    input.observations.push_back(last_observation);
    input.candidates.push_back(last_candidates);
    input.achieved.clear();
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
    input.check(tables, settings.capacity);
    store.add(input);
  }
  const auto strategy = reader.get<std::uint32_t>();
  const std::size_t active = reader.get_count(sizeof(std::int32_t));
  const auto order = reader.get_array<std::int32_t>(active);
  if (!reader.finished()) Reader::fail();
  // The order matters for a bit-identical continuation, and exists when nothing was changed.
  const bool same =
      strategy == static_cast<std::uint32_t>(settings.strategy) && store.evicted_steps() == evicted;
  if (same && !store.reorder_active_goals(order)) Reader::fail();
  return state;
} catch (const ReplayFault& fault) {
  throw CheckpointFault(std::string("the replay checkpoint does not fit this buffer: ") +
                        fault.what());
}

}  // namespace sacglam::replay
