// Batches as tuples of arrays, drawn now or ahead, and a user's relabeling as a hook.
#pragma once

#include "bind_replay_convert.hpp"
#include "replay_prefetch.hpp"

namespace sacglam {

constexpr const char* kFields[] = {"prompt_ids",
                                   "prompt_offsets",
                                   "candidates",
                                   "next_prompt_ids",
                                   "next_prompt_offsets",
                                   "next_candidates",
                                   "action",
                                   "n_step_return",
                                   "discount",
                                   "weight",
                                   "steps",
                                   "goal",
                                   "relabeled",
                                   "episode",
                                   "step",
                                   "key"};

// A caller's arrays to write to.
struct GivenArrays {
  BatchArrays arrays{};
  std::size_t prompt_room, next_room;
  bool exact = true;  // those of the rows have no more entries than there are rows

  GivenArrays(const py::tuple& t, std::size_t rows) {
    if (t.size() != std::size(kFields)) throw ReplayFault("out must have every field");
    arrays.prompt_ids = writable<std::int32_t>(t[0], kFields[0], 0);
    arrays.prompt_offsets = of_rows<std::int64_t>(t, 1, rows + 1);
    arrays.candidates = of_rows<std::int32_t>(t, 2, rows);
    arrays.next_prompt_ids = writable<std::int32_t>(t[3], kFields[3], 0);
    arrays.next_prompt_offsets = of_rows<std::int64_t>(t, 4, rows + 1);
    arrays.next_candidates = of_rows<std::int32_t>(t, 5, rows);
    arrays.action = of_rows<std::int32_t>(t, 6, rows);
    arrays.n_step_return = of_rows<float>(t, 7, rows);
    arrays.discount = of_rows<float>(t, 8, rows);
    arrays.weight = of_rows<float>(t, 9, rows);
    arrays.steps = of_rows<std::int32_t>(t, 10, rows);
    arrays.goal = of_rows<std::int32_t>(t, 11, rows);
    arrays.relabeled = of_rows<std::uint8_t>(t, 12, rows);
    arrays.episode = of_rows<std::int64_t>(t, 13, rows);
    arrays.step = of_rows<std::int32_t>(t, 14, rows);
    arrays.key = of_rows<std::int64_t>(t, 15, rows);
    prompt_room = static_cast<std::size_t>(t[0].cast<py::array>().size());
    next_room = static_cast<std::size_t>(t[3].cast<py::array>().size());
  }

  void require_room(std::size_t prompt_tokens, std::size_t next_tokens) const {
    require("prompt_ids", prompt_room, prompt_tokens);
    require("next_prompt_ids", next_room, next_tokens);
  }

  // What a caller needs to take the batch's part of its arrays.
  py::tuple used(std::size_t prompt_tokens, std::size_t next_tokens) const {
    return py::make_tuple(prompt_tokens, next_tokens, exact);
  }

 private:
  template <class T>
  T* of_rows(const py::tuple& t, std::size_t field, std::size_t need) {
    T* data = writable<T>(t[field], kFields[field], need);
    exact = exact && static_cast<std::size_t>(PyObject_Length(t[field].ptr())) == need;
    return data;
  }
  static void require(const char* name, std::size_t room, std::size_t need) {
    if (need > room) {
      throw ReplayFault(std::string("out.") + name + " holds " + std::to_string(room) +
                        " token ids, this batch needs " + std::to_string(need) +
                        "; give a larger array, the same batch is drawn again");
    }
  }
};

// The memory of a batch as new numpy arrays; a field keeps all other fields of the rows alive.
inline py::tuple to_arrays(OwnedBatch batch) {
  const BatchArrays& a = batch.arrays;
  const auto n = static_cast<py::ssize_t>(batch.rows);
  const py::capsule owner(batch.fields.get(), [](void* p) { delete[] static_cast<std::byte*>(p); });
  batch.fields.release();
  const auto view = [&](const auto* data, py::ssize_t size) {
    return py::array_t<std::remove_cvref_t<decltype(*data)>>(size, data, owner);
  };
  return py::make_tuple(
      adopt(std::move(batch.prompt), batch.prompt_tokens), view(a.prompt_offsets, n + 1),
      view(a.candidates, n), adopt(std::move(batch.next), batch.next_tokens),
      view(a.next_prompt_offsets, n + 1), view(a.next_candidates, n), view(a.action, n),
      view(a.n_step_return, n), view(a.discount, n), view(a.weight, n), view(a.steps, n),
      view(a.goal, n), view(a.relabeled, n), view(a.episode, n), view(a.step, n), view(a.key, n));
}

// `ask(width, arrays...)` returns goals, hits or None, rewards or None.
inline GoalHook to_hook(const py::object& ask) {
  if (ask.is_none()) return nullptr;
  return [&ask](const GoalRequest& r) {
    const py::gil_scoped_acquire acquire;
    const py::array observations = to_numpy(r.observations)
                                       .reshape({static_cast<py::ssize_t>(r.row.size()),
                                                 static_cast<py::ssize_t>(r.width + 1)});
    const auto result =
        ask(to_numpy(r.row), to_numpy(r.episode), to_numpy(r.step), to_numpy(r.length),
            to_numpy(r.goal), observations, to_numpy(r.achieved_offsets), to_numpy(r.achieved),
            to_numpy(r.achieved_steps))
            .cast<py::tuple>();
    GoalAnswer answer;
    answer.goal = to_ints<std::int32_t>(result[0], "goals");
    if (!result[1].is_none()) {
      const auto hits = result[1].cast<py::array_t<std::uint8_t, py::array::c_style>>();
      answer.hits.assign(hits.data(), hits.data() + hits.size());
    }
    if (!result[2].is_none()) answer.rewards = to_floats(result[2], "rewards");
    return answer;
  };
}

inline std::size_t to_rows(const py::object& batch_size) {
  return static_cast<std::size_t>(to_int(batch_size, "batch_size", 1, std::int64_t{1} << 24));
}

// Returns the fields of `count` batches, each in kFields' order.
inline py::list sample_many(ReplayBuffer& buffer, const py::object& count,
                            const py::object& batch_size, double beta, const py::object& ask) {
  const auto batches = static_cast<std::size_t>(to_int(count, "count", 1, 1 << 20));
  const std::size_t rows = to_rows(batch_size);
  const GoalHook hook = to_hook(ask);
  std::vector<OwnedBatch> drawn(batches);
  // A hook may sample itself, in this thread: nothing is shared with that.
  thread_local Plan scratch;
  Plan own;
  {
    const py::gil_scoped_release release;
    for (OwnedBatch& batch : drawn) {
      buffer.sample(
          rows, beta, hook ? own : scratch, [&](const Plan& plan) { return batch.make_room(plan); },
          hook);
    }
  }
  py::list out;
  for (OwnedBatch& batch : drawn) out.append(to_arrays(std::move(batch)));
  return out;
}

// With `out`, returns what of it was used; see GivenArrays::used.
inline py::tuple sample(ReplayBuffer& buffer, const py::object& batch_size, const py::object& out,
                        double beta, const py::object& ask) {
  if (out.is_none()) return sample_many(buffer, py::int_(1), batch_size, beta, ask)[0];
  const std::size_t rows = to_rows(batch_size);
  const auto given = out.cast<py::tuple>();
  const GivenArrays to(given, rows);
  const GoalHook hook = to_hook(ask);
  std::size_t tokens = 0, next_tokens = 0;
  thread_local Plan scratch;
  Plan own;
  {
    const py::gil_scoped_release release;
    buffer.sample(
        rows, beta, hook ? own : scratch,
        [&](const Plan& plan) {
          tokens = plan.prompt_tokens;
          next_tokens = plan.next_tokens;
          to.require_room(tokens, next_tokens);
          return to.arrays;
        },
        hook);
  }
  return to.used(tokens, next_tokens);
}

// The same from batches that are drawn ahead.
inline py::tuple sample_ahead(Prefetcher& ahead, const py::object& batch_size,
                              const py::object& out, double beta) {
  const std::size_t rows = to_rows(batch_size);
  OwnedBatch batch;
  if (out.is_none()) {
    {
      const py::gil_scoped_release release;
      batch = ahead.next(rows, beta);
    }
    return to_arrays(std::move(batch));
  }
  const auto given = out.cast<py::tuple>();
  const GivenArrays to(given, rows);
  {
    const py::gil_scoped_release release;
    batch = ahead.next(rows, beta, [&](const OwnedBatch& ready) {
      to.require_room(ready.prompt_tokens, ready.next_tokens);
    });
    batch.copy_to(to.arrays);
  }
  return to.used(batch.prompt_tokens, batch.next_tokens);
}

}  // namespace sacglam
