// Python bindings of the replay buffer.
#include "bind_replay_sample.hpp"
#include "bindings.hpp"

namespace sacglam {
namespace {

constexpr const char* kStrategies[] = {"none", "future", "final", "episode", "random"};
constexpr const char* kBalances[] = {"events", "goals"};
constexpr const char* kSamplings[] = {"transitions", "episodes", "prioritised"};
constexpr const char* kLongEpisodes[] = {"refuse", "split"};

Settings settings_of(std::int64_t capacity, std::int32_t n_step, double gamma,
                     const std::string& strategy, double ratio, double random,
                     const std::string& balance, float reward, const std::string& sampling,
                     const std::string& long_episodes, double exponent, double beta, double epsilon,
                     std::int64_t capacity_bytes) {
  Settings s;
  s.capacity = capacity;
  s.capacity_bytes = capacity_bytes;
  s.n_step = n_step;
  s.gamma = gamma;
  s.her_ratio = ratio;
  s.her_random = random;
  s.her_reward = reward;
  const auto named = [](const std::string& what, const std::string& given, const auto& names) {
    std::uint32_t i = 0;
    for (const char* name : names) {
      if (given == name) return i;
      ++i;
    }
    throw ReplayFault("unknown " + what + " '" + given + "'");
  };
  s.strategy = static_cast<Strategy>(named("her_strategy", strategy, kStrategies));
  s.sampling = static_cast<Sampling>(named("sampling", sampling, kSamplings));
  s.long_episodes = static_cast<LongEpisodes>(named("long_episodes", long_episodes, kLongEpisodes));
  s.priority_exponent = exponent;
  s.priority_beta = beta;
  s.priority_epsilon = epsilon;
  s.balance = static_cast<Balance>(named("her_balance", balance, kBalances));
  if (s.sampling == Sampling::kPrioritised && capacity > Settings::kMostPrioritised) {
    throw ReplayFault("prioritised sampling is exact up to a capacity of " +
                      std::to_string(Settings::kMostPrioritised) + " transitions, got " +
                      std::to_string(capacity));
  }
  if (!s.are_sound()) throw ReplayFault("a setting of the replay buffer is out of range");
  return s;
}

// Another process may hold, or be about to use, any id: nobody can know when a text is free.
void require_shareable(const Settings& settings) {
  if (settings.capacity_bytes > 0) {
    throw ReplayFault(
        "capacity_bytes frees texts, which needs a buffer of one process; shared_bytes bounds the "
        "texts of a shared one");
  }
}

// On shared memory: a new one, the existing one of that name, or the one that another object has.
std::unique_ptr<ReplayBuffer> create(const std::string& name, const Settings& settings,
                                     std::uint64_t seed, std::int64_t texts, std::int64_t bytes) {
  require_shareable(settings);
  return std::make_unique<ReplayBuffer>(settings, seed,
                                        SharedLog::create(name, settings, seed, {texts, bytes}));
}

std::unique_ptr<ReplayBuffer> attach(const std::string& name) {
  auto log = SharedLog::attach(name);
  const Settings settings = log->settings();
  const std::uint64_t seed = log->seed();
  return std::make_unique<ReplayBuffer>(settings, seed, std::move(log));
}

std::unique_ptr<ReplayBuffer> with_settings(const ReplayBuffer& buffer, const Settings& settings,
                                            std::uint64_t seed) {
  require_shareable(settings);
  return std::make_unique<ReplayBuffer>(settings, seed, buffer.log()->reattach());
}

py::dict settings_dict(const ReplayBuffer& buffer) {
  const Settings& s = buffer.settings();
  py::dict d;
  d["capacity"] = s.capacity;
  d["n_step"] = s.n_step;
  d["capacity_bytes"] = s.capacity_bytes > 0 ? py::object(py::int_(s.capacity_bytes)) : py::none();
  d["gamma"] = s.gamma;
  d["her_strategy"] = kStrategies[static_cast<std::size_t>(s.strategy)];
  d["her_ratio"] = s.her_ratio;
  d["her_random"] = s.her_random;
  d["her_balance"] = kBalances[static_cast<std::size_t>(s.balance)];
  d["her_reward"] = s.her_reward;
  d["sampling"] = kSamplings[static_cast<std::size_t>(s.sampling)];
  d["long_episodes"] = kLongEpisodes[static_cast<std::size_t>(s.long_episodes)];
  d["priority_exponent"] = s.priority_exponent;
  d["priority_beta"] = s.priority_beta;
  d["priority_epsilon"] = s.priority_epsilon;
  return d;
}

void translate(std::exception_ptr p) {
  const auto raise = [](const char* type, const char* message) {
    const py::object cls = py::module_::import("sacglam.errors").attr(type);
    PyErr_SetString(cls.ptr(), message);
  };
  try {
    if (p) std::rethrow_exception(p);
  } catch (const ReplayFault& fault) {
    raise("ReplayError", fault.what());
  } catch (const CheckpointFault& fault) {
    raise("CheckpointError", fault.what());
  }
}

}  // namespace

void bind_replay(py::module_& m) {
  py::register_local_exception_translator(&translate);
  using Release = py::call_guard<py::gil_scoped_release>;

  py::class_<Settings>(m, "ReplaySettings", "Checked settings of a replay buffer.")
      .def(py::init(&settings_of));
  py::class_<ReplayBuffer>(m, "Replay", "Native side of sacglam.replay.ReplayBuffer.")
      .def(py::init([](const Settings& s, std::uint64_t seed) {
        return std::make_unique<ReplayBuffer>(s, seed);
      }))
      .def_static("create", &create)
      .def_static("attach", &attach)
      .def("with_settings", &with_settings)
      .def("settings", &settings_dict)
      .def("seed", &ReplayBuffer::seed)
      .def("intern_text",
           [](ReplayBuffer& b, const py::object& ids) {
             const auto v = to_ints<std::int32_t>(ids, "ids");
             const py::gil_scoped_release release;
             return b.intern_text(v);
           })
      .def("intern_candidates",
           [](ReplayBuffer& b, const py::object& ids) {
             const auto v = to_ints<std::int32_t>(ids, "text_ids");
             const py::gil_scoped_release release;
             return b.intern_candidates(v);
           })
      .def("text", [](const ReplayBuffer& b,
                      const py::object& id) { return to_numpy(b.text(to_id(id, "text"))); })
      .def("candidate_set",
           [](const ReplayBuffer& b, const py::object& id) {
             return to_numpy(b.candidate_set(to_id(id, "candidates")));
           })
      .def("candidate_tokens",
           [](const ReplayBuffer& b, const py::object& id) {
             const auto [tokens, offsets] = b.candidate_tokens(to_id(id, "candidates"));
             return py::make_tuple(to_numpy(tokens), to_numpy(offsets));
           })
      .def("set_template",
           [](ReplayBuffer& b, const py::object& ops) { b.set_template(to_ops(ops, false)); })
      .def("add_episode",
           [](ReplayBuffer& b, const py::object& goal, const py::object& observations,
              const py::object& candidates, const py::object& actions, const py::object& rewards,
              const py::object& terminated, const py::object& truncated,
              const py::object& achieved_offsets, const py::object& achieved) {
             EpisodeInput e;
             e.goal = to_id(goal, "goal");
             e.observations = to_ints<std::int32_t>(observations, "observations");
             e.candidates = to_ints<std::int32_t>(candidates, "candidates");
             e.actions = to_ints<std::int32_t>(actions, "actions");
             e.rewards = to_floats(rewards, "rewards");
             e.terminated = to_bool(terminated, "terminated");
             e.truncated = to_bool(truncated, "truncated");
             e.achieved_offsets = to_ints<std::int64_t>(achieved_offsets, "achieved_offsets");
             e.achieved = to_ints<std::int32_t>(achieved, "achieved");
             const py::gil_scoped_release release;
             return b.add_episode(e);
           })
      .def("assemble",
           [](const ReplayBuffer& b, const py::object& goal, const py::object& observations,
              const py::object& candidates, const py::object& actions, const py::object& t) {
             const auto g = to_id(goal, "goal");
             const auto o = to_ints<std::int32_t>(observations, "observations");
             const auto c = to_ints<std::int32_t>(candidates, "candidates");
             const auto a = to_ints<std::int32_t>(actions, "actions");
             const auto step = to_int(t, "t", 0, std::numeric_limits<std::int32_t>::max());
             std::vector<std::int32_t> ids;
             {
               const py::gil_scoped_release release;
               ids = b.assemble(g, o, c, a, step);
             }
             return to_numpy(ids);
           })
      .def("sample", &sample)
      .def("sample_many", &sample_many)
      .def("update_priorities",
           [](ReplayBuffer& b, const py::object& keys, const py::object& priorities) {
             const auto k = to_ints<std::int64_t>(keys, "keys");
             const auto p = to_doubles(priorities, "priorities");
             const py::gil_scoped_release release;
             return b.update_priorities(k, p);
           })
      .def("save", &ReplayBuffer::save, Release())
      .def("load", &ReplayBuffer::load, Release())
      .def("steps", &ReplayBuffer::steps, Release())
      .def("stats", [](ReplayBuffer& b) {
        const Stats s = b.stats();
        py::dict d;
        d["steps"] = s.steps;
        d["episodes"] = s.episodes;
        d["evicted_steps"] = s.evicted_steps;
        d["goals"] = s.goals;
        d["bytes"] = s.bytes;
        d["content_bytes"] = s.content_bytes;
        d["shared_bytes"] = s.shared_bytes;
        d["bytes_per_step"] =
            s.steps == 0 ? 0.0 : static_cast<double>(s.bytes) / static_cast<double>(s.steps);
        d["samples"] = s.samples;
        d["batches"] = s.batches;
        d["redrawn"] = s.redrawn;
        d["her_share"] = s.her_share;
        d["stale_priorities"] = s.stale_priorities;
        d["texts"] = s.texts;
        d["candidate_sets"] = s.sets;
        return d;
      });
  py::class_<Prefetcher>(m, "ReplayPrefetcher", "Native side of ReplayBuffer(prefetch=n).")
      .def(py::init<ReplayBuffer&, std::size_t>(), py::keep_alive<1, 2>())
      .def("sample", &sample_ahead)
      .def("stop", &Prefetcher::stop, Release());
}

}  // namespace sacglam
