// The replay buffer: text transitions as interned token ids, hindsight on sampling, prompts
// assembled natively. Pure C++20, no Python.
//
// Threads: any number may call any method. Sampling, assembling and the copying part of save()
// take no lock and never wait for anyone: see replay_ring.hpp for why what they read is sound.
// Two mutexes remain, both among writers of one process: `commit_` (add_episode, about a
// microsecond for an episode of 25 steps; load; the first instant of save) and `intern_` (new texts
// and sets). A writer that is descheduled while it holds one delays other writers, never a sampler.
// On a shared log (replay_log.hpp) producers take neither to append.
#pragma once

#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "replay_log.hpp"
#include "replay_state.hpp"

namespace sacglam::replay {

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
  std::uint64_t steps, episodes, evicted_steps, goals, bytes, shared_bytes, samples, batches,
      redrawn, texts, sets;
  double her_share;
};

class ReplayBuffer {
 public:
  static constexpr std::size_t kUnlimited = ~std::size_t{0};

  ReplayBuffer(const Settings& settings, std::uint64_t seed)
      : ReplayBuffer(settings, seed, nullptr) {}
  // On a shared log: what any process appends to it can be sampled here.
  ReplayBuffer(const Settings& settings, std::uint64_t seed, std::unique_ptr<SharedLog> log)
      : settings_(settings), log_(std::move(log)), owned_(new_state(seed)) {
    state_.store(owned_.get(), std::memory_order_release);
  }
  const SharedLog* log() const { return log_.get(); }
  const Settings& settings() const { return settings_; }
  std::uint64_t seed() const { return state().seed; }

  std::int32_t intern_text(const std::vector<std::int32_t>& ids) {
    const std::lock_guard lock(writers(intern_));
    return owned_->tables.intern_text(ids.data(), ids.size());
  }
  std::int32_t intern_candidates(const std::vector<std::int32_t>& ids) {
    const std::lock_guard lock(writers(intern_));
    return owned_->tables.intern_candidates(ids.data(), ids.size());
  }
  std::vector<std::int32_t> text(std::int32_t id) const {
    const Reclaimer::Guard guard(reclaimer_);
    adopt(&id, 1, nullptr, 0);
    const Tables& tables = state().tables;
    tables.require_text(id, "text");
    const Span span = tables.texts[id];
    return {span.data, span.data + span.size};
  }
  std::vector<std::int32_t> candidate_set(std::int32_t id) const {
    const Reclaimer::Guard guard(reclaimer_);
    adopt(nullptr, 0, &id, 1);
    const Tables& tables = state().tables;
    tables.require_set(id, "candidates");
    const Span span = tables.sets[id];
    return {span.data, span.data + span.size};
  }
  void set_template(std::vector<Op> ops) {
    const std::lock_guard lock(writers(intern_));
    adopt_literals(ops, owned_->tables);
    owned_->set_form(Template(std::move(ops), owned_->tables), reclaimer_);
    reclaimer_.collect();
  }

  std::int64_t add_episode(const EpisodeInput& input) {
    for (;;) {
      const std::uint64_t loads = loads_.load(std::memory_order_acquire);
      {
        const Reclaimer::Guard guard(reclaimer_);
        adopt(input);
        input.check(state().tables, settings_.capacity);
      }
      if (log_) return static_cast<std::int64_t>(log_->append(input));
      const std::lock_guard lock(writers(commit_));
      // Another state since the check: its ids mean something else.
      if (loads != loads_.load(std::memory_order_relaxed)) continue;
      return static_cast<std::int64_t>(owned_->store.add(input));
    }
  }

  // Takes over what other processes (and this one) appended to the shared log. Every call that
  // reads the contents does it; nobody waits: where another thread is at it, its work will do.
  void follow();

  // The prompt at step t of an episode that is still running.
  std::vector<std::int32_t> assemble(std::int32_t goal,
                                     const std::vector<std::int32_t>& observations,
                                     const std::vector<std::int32_t>& candidates,
                                     const std::vector<std::int32_t>& actions,
                                     std::int64_t t) const;

  // Draws a batch of `rows`. `place(plan)` says where it goes, once its size is known; when it
  // throws, the next call draws the same batch (unless another thread has sampled meanwhile).
  template <class Place>
  void sample(std::size_t rows, Plan& plan, const Place& place);

  void save(const std::string& path) {
    follow();
    adopt_all();
    Bytes payload;
    {
      const Reclaimer::Guard guard(reclaimer_);
      std::unique_lock lock(writers(commit_));
      const State& now = state();
      const Snapshot snapshot(now);
      lock.unlock();
      payload = write_state(now, snapshot, settings_);
    }
    write_checkpoint(path, payload);
  }

  void load(const std::string& path);

  std::uint64_t steps() {
    follow();
    const Reclaimer::Guard guard(reclaimer_);
    const auto [head, tail] = state().store.rows().range();
    return tail - head;
  }
  Stats stats();

 private:
  const State& state() const { return *state_.load(std::memory_order_acquire); }
  std::unique_ptr<State> new_state(std::uint64_t seed) {
    return std::make_unique<State>(settings_, seed, reclaimer_, log_ ? &log_->texts() : nullptr,
                                   log_ ? &log_->sets() : nullptr);
  }
  // In a forked process a mutex may be held by a thread that does not exist there, and what is
  // added to its copy would reach nobody. Reading goes on: it takes no mutex.
  std::mutex& writers(std::mutex& mutex) const {
    if (::getpid() != pid_) {
      throw ReplayFault(
          "this replay buffer belongs to the process that made it, and this is a fork of it: "
          "sampling works here, changing it does not; share it between processes by shared=name");
    }
    return mutex;
  }
  // Makes ids known here that other processes interned.
  void adopt(const std::int32_t* texts, std::size_t n_texts, const std::int32_t* sets,
             std::size_t n_sets) const;
  void adopt(const EpisodeInput& input) const {
    if (!log_) return;
    adopt(&input.goal, 1, nullptr, 0);
    adopt(input.observations.data(), input.observations.size(), input.candidates.data(),
          input.candidates.size());
    adopt(input.achieved.data(), input.achieved.size(), nullptr, 0);
  }
  void adopt_all() const;

  const Settings settings_;
  const pid_t pid_ = ::getpid();
  const std::unique_ptr<SharedLog> log_;  // null: this process's alone
  mutable Reclaimer reclaimer_;  // declared first: what it frees may refer to nothing below
  mutable std::mutex commit_;
  mutable std::mutex intern_;
  std::unique_ptr<State> owned_;        // the writers'
  std::atomic<State*> state_{nullptr};  // the readers'
  std::atomic<std::uint64_t> loads_{0};
};

// Copies tokens. Small texts go by whole blocks: a text owns the memory up to the next block, and
// what is written too much is overwritten by the next text; the last ones are copied exactly.
inline void gather(const std::vector<Span>& spans, std::size_t tokens, std::int32_t* to) {
  constexpr std::size_t kAhead = 12;  // spans; hides the misses of one text behind others
  std::size_t left = tokens;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    if (i + kAhead < spans.size()) __builtin_prefetch(spans[i + kAhead].data);
    const Span span = spans[i];
    const std::size_t blocks = (span.size + Span::kPad - 1) / Span::kPad;
    if (blocks <= 4 && blocks * Span::kPad <= left) {
      for (std::size_t b = 0; b < blocks; ++b) {
        std::memcpy(to + b * Span::kPad, span.data + b * Span::kPad,
                    Span::kPad * sizeof(std::int32_t));
      }
    } else {
      std::memcpy(to, span.data, span.size * sizeof(std::int32_t));
    }
    to += span.size;
    left -= span.size;
  }
}

inline void fill(const Plan& plan, const BatchArrays& to) {
  gather(plan.prompt_spans, plan.prompt_tokens, to.prompt_ids);
  gather(plan.next_spans, plan.next_tokens, to.next_prompt_ids);
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
    to.goal[i] = row.goal;
    to.relabeled[i] = row.relabeled ? 1 : 0;
    to.episode[i] = static_cast<std::int64_t>(row.episode);
    to.step[i] = row.step;
  }
}

inline void ReplayBuffer::adopt(const std::int32_t* texts, std::size_t n_texts,
                                const std::int32_t* sets, std::size_t n_sets) const {
  if (!log_) return;
  const Tables& known = state().tables;
  const bool all =
      std::all_of(texts, texts + n_texts,
                  [&](std::int32_t id) { return known.texts.contains(id); }) &&
      std::all_of(sets, sets + n_sets, [&](std::int32_t id) { return known.sets.contains(id); });
  if (all) return;
  const std::lock_guard lock(writers(intern_));
  for (std::size_t i = 0; i < n_texts; ++i) owned_->tables.texts.adopt(texts[i]);
  for (std::size_t i = 0; i < n_sets; ++i) owned_->tables.adopt_set(sets[i]);
}

inline void ReplayBuffer::adopt_all() const {
  if (!log_) return;
  const std::lock_guard lock(writers(intern_));
  for (std::int32_t id = 0; id < log_->texts().size(); ++id) owned_->tables.texts.adopt(id);
  for (std::int32_t id = 0; id < log_->sets().size(); ++id) owned_->tables.adopt_set(id);
}

inline void ReplayBuffer::follow() {
  if (!log_ || !log_->has_news()) return;
  std::unique_lock lock(writers(commit_), std::try_to_lock);
  const Reclaimer::Guard guard(reclaimer_);
  if (!lock.owns_lock()) {
    const auto [head, tail] = state().store.rows().range();
    if (head != tail) return;
    lock.lock();  // nothing to go on with until the other thread is done
  }
  log_->follow([&](std::uint64_t label, const EpisodeInput& input) {
    try {
      adopt(input);
      input.check(owned_->tables, settings_.capacity);
    } catch (const ReplayFault&) {
      return;  // longer than this process keeps, or another program's bug
    }
    owned_->store.add(input, label);
  });
}

inline void ReplayBuffer::load(const std::string& path) {
  const Checkpoint file = read_checkpoint(path);
  std::vector<LoadedEpisode> episodes;
  std::unique_lock interning(writers(intern_), std::defer_lock);
  if (log_) {
    if (log_->appended() > 0) {
      throw ReplayFault("the shared buffer '" + log_->name() +
                        "' holds episodes already: load a checkpoint into a fresh one");
    }
    interning.lock();
  }
  std::unique_ptr<State> loaded =
      read_state(file, settings_, new_state(0), reclaimer_, log_ ? &episodes : nullptr);
  if (interning.owns_lock()) interning.unlock();
  const std::scoped_lock lock(commit_, intern_);
  if (log_) {  // for the other processes; here they are
    for (const LoadedEpisode& e : episodes) log_->append(e.input, e.label);
    log_->set_next(loaded->store.next_label());
    log_->follow([&](std::uint64_t, const EpisodeInput&) {});
  }
  state_.store(loaded.get(), std::memory_order_release);
  owned_.swap(loaded);
  loads_.fetch_add(1, std::memory_order_release);
  reclaimer_.retire(std::shared_ptr<const State>(std::move(loaded)));
  reclaimer_.collect();
}

template <class Place>
void ReplayBuffer::sample(std::size_t rows, Plan& plan, const Place& place) {
  follow();
  const Reclaimer::Guard guard(reclaimer_);
  State& state = *state_.load(std::memory_order_acquire);
  const Template& form = *state.current_form.load(std::memory_order_acquire);
  if (form.empty()) throw ReplayFault("no template is set: call set_template first");
  const auto [head, tail] = state.store.rows().range();
  if (head == tail) throw ReplayFault("the buffer is empty: add an episode before sampling");
  const std::uint64_t batch = state.batches.fetch_add(1, std::memory_order_relaxed);
  Sampler(settings_, state.store, state.tables, form).plan(rows, state.seed, batch, plan);
  BatchArrays to;
  try {
    to = place(plan);
  } catch (...) {
    std::uint64_t mine = batch + 1;
    state.batches.compare_exchange_strong(mine, batch, std::memory_order_relaxed);
    throw;
  }
  fill(plan, to);
  state.sampled_rows.fetch_add(rows, std::memory_order_relaxed);
  state.relabeled_rows.fetch_add(plan.relabeled, std::memory_order_relaxed);
  if (plan.redrawn > 0) state.redrawn_rows.fetch_add(plan.redrawn, std::memory_order_relaxed);
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
  const Reclaimer::Guard guard(reclaimer_);
  const Tables& tables = state().tables;
  const Template& form = *state().current_form.load(std::memory_order_acquire);
  if (form.empty()) throw ReplayFault("no template is set: call set_template first");
  adopt(&goal, 1, nullptr, 0);
  adopt(observations.data(), observations.size(), candidates.data(), candidates.size());
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
  const std::size_t tokens = form.emit(tables, RunningSteps{observations, candidates, actions},
                                       static_cast<std::int32_t>(t), goal, spans);
  std::vector<std::int32_t> out(tokens);
  gather(spans, tokens, out.data());
  return out;
}

inline Stats ReplayBuffer::stats() {
  follow();
  const std::scoped_lock lock(writers(commit_), intern_);
  const State& s = *owned_;
  Stats out{};
  out.steps = s.store.rows().tail() - s.store.rows().head();
  out.episodes = s.store.episodes().tail() - s.store.episodes().head();
  out.evicted_steps = s.store.evicted_steps();
  out.goals = s.store.active_goals();
  out.bytes = s.store.bytes() + s.tables.texts.bytes() + s.tables.sets.bytes();
  out.shared_bytes = log_ ? log_->bytes() : 0;
  out.samples = s.sampled_rows.load(std::memory_order_relaxed);
  out.batches = s.batches.load(std::memory_order_relaxed);
  out.redrawn = s.redrawn_rows.load(std::memory_order_relaxed);
  out.texts = static_cast<std::uint64_t>(s.tables.texts.size());
  out.sets = static_cast<std::uint64_t>(s.tables.sets.size());
  out.her_share = out.samples == 0
                      ? 0.0
                      : static_cast<double>(s.relabeled_rows.load(std::memory_order_relaxed)) /
                            static_cast<double>(out.samples);
  return out;
}

}  // namespace sacglam::replay
