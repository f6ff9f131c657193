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

#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "replay_batch.hpp"
#include "replay_log.hpp"
#include "replay_state.hpp"

namespace sacglam::replay {

struct Stats {
  std::uint64_t steps, episodes, evicted_steps, goals, bytes, content_bytes, shared_bytes, samples,
      batches, redrawn, texts, sets, stale_priorities;
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
    return intern(&Tables::texts, ids, &Tables::intern_text, &Lifetimes::touch_text);
  }
  std::int32_t intern_candidates(const std::vector<std::int32_t>& ids) {
    return intern(&Tables::sets, ids, &Tables::intern_candidates, &Lifetimes::touch_set);
  }
  std::vector<std::int32_t> text(std::int32_t id) const {
    const Reclaimer::Guard guard(reclaimer_);
    adopt(&id, 1, nullptr, 0);
    const Tables& tables = state().tables;
    tables.require_text(id, "text");
    return tables.texts[id].ids();  // empty where another thread has freed it by now
  }
  std::vector<std::int32_t> candidate_set(std::int32_t id) const {
    const Reclaimer::Guard guard(reclaimer_);
    adopt(nullptr, 0, &id, 1);
    const Tables& tables = state().tables;
    tables.require_set(id, "candidates");
    return tables.sets[id].ids();
  }
  // The tokens of a set's texts, one behind the other, and where each begins.
  std::pair<std::vector<std::int32_t>, std::vector<std::int64_t>> candidate_tokens(
      std::int32_t id) const {
    const Reclaimer::Guard guard(reclaimer_);
    adopt(nullptr, 0, &id, 1);
    const Tables& tables = state().tables;
    tables.require_set(id, "candidates");
    std::vector<std::int32_t> tokens;
    std::vector<std::int64_t> offsets = {0};
    const Span set = tables.sets[id];
    for (std::size_t i = 0; i < set.size; ++i) {
      const std::vector<std::int32_t> text = tables.texts[set[i]].ids();
      tokens.insert(tokens.end(), text.begin(), text.end());
      offsets.push_back(static_cast<std::int64_t>(tokens.size()));
    }
    return {std::move(tokens), std::move(offsets)};
  }
  void set_template(std::vector<Op> ops) {
    std::unique_lock commit(commit_, std::defer_lock);
    std::unique_lock lock(writers(intern_), std::defer_lock);
    if (frees()) {
      std::lock(commit, lock);
    } else {
      lock.lock();
    }
    adopt_literals(ops, owned_->tables);
    owned_->set_form(Template(std::move(ops), owned_->tables), reclaimer_);
    versions_.fetch_add(1, std::memory_order_release);
    reclaimer_.collect();
  }

  // Of an episode that is split, the id of its first piece.
  std::int64_t add_episode(const EpisodeInput& input) {
    const std::size_t length = input.actions.size();
    if (settings_.long_episodes == LongEpisodes::kRefuse || fits(input, 0, length)) {
      return add_whole(input);
    }
    {
      const Reclaimer::Guard guard(reclaimer_);
      adopt(input);
      input.check(state().tables, std::numeric_limits<std::int64_t>::max());
    }
    std::vector<EpisodeInput> pieces;
    for (std::size_t begin = 0, end = 0; begin < length; begin = end) {
      const std::size_t most = static_cast<std::size_t>((settings_.capacity + 1) / 2);
      end = begin + 1;
      while (end < length && end - begin < most && fits(input, begin, end + 1)) ++end;
      pieces.push_back(input.piece(begin, end));
    }
    if (frees()) return add_freeing(input, pieces);
    const std::int64_t first = add_whole(pieces.front());
    for (std::size_t i = 1; i < pieces.size(); ++i) add_whole(pieces[i]);
    return first;
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

  // Draws a batch of `rows`. `place(plan)` says where it goes, once its size is known; when it, or
  // the hook, throws, the next call draws the same batch (unless another thread has sampled
  // meanwhile).
  template <class Place>
  void sample(std::size_t rows, double beta, Plan& plan, const Place& place,
              const GoalHook& hook = nullptr, std::optional<std::uint64_t> number = std::nullopt);

  // For batches that are drawn ahead (replay_prefetch.hpp): sample() with a `number` draws that
  // batch and counts nothing; delivered() counts it. Another version means other contents or
  // another template, and batches that were drawn before are void.
  std::uint64_t version() const { return versions_.load(std::memory_order_acquire); }
  std::uint64_t batches() const { return state().batches.load(std::memory_order_relaxed); }
  void delivered(std::uint64_t number, std::size_t rows, std::size_t relabeled,
                 std::size_t redrawn) {
    const Reclaimer::Guard guard(reclaimer_);
    State& now = *state_.load(std::memory_order_acquire);
    now.batches.store(number + 1, std::memory_order_relaxed);
    count(now, rows, relabeled, redrawn);
  }

  // New priorities of the transitions that `keys` name; returns how many are still there.
  std::size_t update_priorities(const std::vector<std::int64_t>& keys,
                                const std::vector<double>& priorities);

  void save(const std::string& path) {
    follow();
    adopt_all();
    Bytes payload;
    {
      const Reclaimer::Guard guard(reclaimer_);
      std::unique_lock lock(writers(commit_));
      std::unique_lock interning(intern_, std::defer_lock);
      if (frees()) {
        lock.unlock();
        std::lock(lock, interning);
      }
      const State& now = state();
      const Snapshot snapshot(now);
      if (frees()) interning.unlock();
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
  // Whether these of its steps can be stored as one episode. It may not have been checked: then
  // its offsets can be anything, and what is wrong with them is said where it is added.
  bool fits(const EpisodeInput& input, std::size_t begin, std::size_t end) const {
    if (end - begin > static_cast<std::size_t>(settings_.capacity)) return false;
    if (!log_ || end >= input.achieved_offsets.size()) return true;
    const std::int64_t first = input.achieved_offsets[begin];
    const std::int64_t last = input.achieved_offsets[end];
    if (first < 0 || last < first) return true;
    return log_->fits(end - begin, static_cast<std::size_t>(last - first));
  }
  bool frees() const { return settings_.capacity_bytes > 0; }
  // The table is looked up under the lock: load() may be about to replace it.
  std::int32_t intern(InternTable Tables::* table, const std::vector<std::int32_t>& ids,
                      std::int32_t (Tables::*add)(const std::int32_t*, std::size_t),
                      void (Lifetimes::*touch)(std::int32_t, std::uint64_t)) {
    if (!frees()) {
      const std::lock_guard lock(writers(intern_));
      return (owned_->tables.*add)(ids.data(), ids.size());
    }
    const std::scoped_lock lock(writers(commit_), intern_);
    const std::uint64_t episode = ready_to_intern(owned_->tables.*table, ids);
    const std::int32_t id = (owned_->tables.*add)(ids.data(), ids.size());
    (*owned_->lives.*touch)(id, episode);
    return id;
  }
  // Under both mutexes. The position of the next episode.
  std::uint64_t ready_to_intern(const InternTable& table, const std::vector<std::int32_t>& ids) {
    const std::size_t more =
        table.find(ids.data(), ids.size()) < 0 ? InternTable::bytes_of(ids) : 0;
    if (more > owned_->capacity_bytes) {  // before anything is driven out for it
      throw ReplayFault("there is no room for a list of " + std::to_string(ids.size()) +
                        " ids: it takes " + std::to_string(more) +
                        " bytes, and capacity_bytes is " + std::to_string(owned_->capacity_bytes) +
                        "; raise it");
    }
    if (more > 0 && !owned_->make_room(more)) {
      throw ReplayFault("there is no room for a list of " + std::to_string(ids.size()) +
                        " ids: of capacity_bytes = " + std::to_string(settings_.capacity_bytes) +
                        ", " + std::to_string(owned_->content_bytes()) +
                        " are taken by the newest episode and by what was interned since the "
                        "oldest one was added; raise capacity_bytes");
    }
    return owned_->store.episodes().next();
  }
  // All pieces of an episode, or none.
  std::int64_t add_freeing(const EpisodeInput& whole, std::span<const EpisodeInput> pieces) {
    const std::scoped_lock lock(writers(commit_), intern_);
    State& now = *owned_;
    for (const EpisodeInput& piece : pieces) {
      piece.check(now.tables, settings_.capacity);
      const std::size_t need = now.bytes_of(piece);
      if (need > now.capacity_bytes) {
        throw ReplayFault("an episode of " + std::to_string(piece.actions.size()) +
                          " transitions takes " + std::to_string(need) +
                          " bytes with its texts, and capacity_bytes is " +
                          std::to_string(now.capacity_bytes) + "; raise it or shorten episodes");
      }
    }
    std::int64_t first = -1;
    for (const EpisodeInput& piece : pieces) {
      // Also the texts of the pieces to come: this one may drive out what kept them.
      now.lives->touch(whole, now.store.episodes().next());
      const auto label = static_cast<std::int64_t>(now.store.add(piece));
      if (first < 0) first = label;
      now.make_room(0);
    }
    reclaimer_.collect();
    return first;
  }
  std::int64_t add_whole(const EpisodeInput& input) {
    if (frees()) return add_freeing(input, {&input, 1});
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
  static void count(State& state, std::size_t rows, std::size_t relabeled, std::size_t redrawn) {
    state.sampled_rows.fetch_add(rows, std::memory_order_relaxed);
    state.relabeled_rows.fetch_add(relabeled, std::memory_order_relaxed);
    if (redrawn > 0) state.redrawn_rows.fetch_add(redrawn, std::memory_order_relaxed);
  }
  GoalAnswer checked(const GoalHook& hook, const GoalRequest& request, const State& state) const;

  const Settings settings_;
  const pid_t pid_ = ::getpid();
  const std::unique_ptr<SharedLog> log_;  // null: this process's alone
  mutable Reclaimer reclaimer_;  // declared first: what it frees may refer to nothing below
  mutable std::mutex commit_;
  mutable std::mutex intern_;
  std::unique_ptr<State> owned_;        // the writers'
  std::atomic<State*> state_{nullptr};  // the readers'
  std::atomic<std::uint64_t> loads_{0};
  std::atomic<std::uint64_t> versions_{0};
};

}  // namespace sacglam::replay

#include "replay_impl.hpp"
