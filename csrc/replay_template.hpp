// The prompt's template: which texts, in which order, make the prompt of a step.
#pragma once

#include <algorithm>
#include <vector>

#include "replay_tables.hpp"

namespace sacglam::replay {

struct Op {
  enum Kind : std::int32_t { kLiteral, kGoal, kObservation, kActions, kHistory, kAction };
  Kind kind;
  std::int32_t arg = 0;       // kLiteral: text id; kActions: separator's text id; kHistory: steps
  std::vector<Op> body = {};  // kHistory alone
};

// Of views: texts that another process has interned become known here.
inline void adopt_literals(const std::vector<Op>& ops, Tables& tables) {
  for (const Op& op : ops) {
    if (op.kind == Op::kLiteral || op.kind == Op::kActions) tables.adopt_text(op.arg);
    adopt_literals(op.body, tables);
  }
}

class Template {
 public:
  Template() = default;

  Template(std::vector<Op> ops, const Tables& tables) : ops_(std::move(ops)) {
    if (ops_.empty()) throw ReplayFault("a template needs at least one part");
    for (const Op& op : ops_) {
      if (op.kind == Op::kLiteral) tables.require_text(op.arg, "template literal");
      if (op.kind == Op::kActions) tables.require_text(op.arg, "template action separator");
      if (op.kind == Op::kHistory) {
        check_history(op, tables);
        history_ = std::max(history_, op.arg);
      }
      if (op.kind == Op::kAction) {
        throw ReplayFault("a template may use \"action\" inside \"history\" alone");
      }
      parts_.emplace_back(op, tables);
      for (const Op& part : op.body) bodies_.emplace_back(part, tables);
    }
  }

  bool empty() const { return ops_.empty(); }
  // The most steps before its own that a prompt shows.
  std::int32_t history() const { return history_; }
  const std::vector<Op>& ops() const { return ops_; }

  // Appends the spans of the prompt at step t, returns how many tokens it has. `goal` is its goal's
  // entry; `steps` has observation(i), candidates(i), action(i) (the index chosen at step i);
  // i <= t, for action i < t. A text that was freed is left out, and the prompt of a step that is
  // being overwritten is anything: then the row is gone.
  template <class Steps>
  [[gnu::always_inline]] std::size_t emit(const Tables& tables, const Steps& steps, std::int32_t t,
                                          const SpanEntry& goal, Spans& out) const {
    const SpanEntry& observation = tables.texts.entry(steps.observation(t));
    const Texts texts = {goal, observation};
    SpanCursor cursor = out.start(parts_.size());
    const Part* rest = put_texts(parts_.data(), texts, cursor);
    if (rest != end()) cursor = put_rest(rest, tables, steps, t, texts, out, cursor);
    out.finish(cursor);
    observation.span().prefetch();  // on its way while other prompts are planned
    return cursor.tokens;
  }

 private:
  // An op as it is read for every prompt, with the list of a literal or of a separator at hand.
  struct Part {
    Part(const Op& op, const Tables& tables)
        : kind(op.kind), arg(op.arg), body(static_cast<std::uint32_t>(op.body.size())) {
      if (kind == Op::kLiteral || kind == Op::kActions) text.set(tables.texts[arg]);
    }
    SpanEntry text;
    Op::Kind kind;
    std::int32_t arg;
    std::uint32_t body;  // how many parts of bodies_ are its own
  };
  struct Texts {
    const SpanEntry& goal;
    const SpanEntry& observation;
  };
  // Those of one text each come first.
  static_assert(Op::kLiteral < Op::kObservation && Op::kGoal < Op::kObservation &&
                Op::kObservation < Op::kActions);

  const Part* end() const { return parts_.data() + parts_.size(); }

  // Parts of one text each; returns the first that is none.
  const Part* put_texts(const Part* part, const Texts& texts, SpanCursor& cursor) const {
    SpanCursor at = cursor;
    for (; part != end() && part->kind <= Op::kObservation; ++part) {
      const SpanEntry& shown = part->kind == Op::kGoal ? texts.goal : texts.observation;
      at.put(part->kind == Op::kLiteral ? part->text : shown);
    }
    cursor = at;
    return part;
  }

  template <class Steps>
  [[gnu::noinline]] SpanCursor put_rest(const Part* part, const Tables& tables, const Steps& steps,
                                        std::int32_t t, const Texts& texts, Spans& out,
                                        SpanCursor cursor) const {
    const Part* body = bodies_.data();
    while (part != end()) {
      if (part->kind == Op::kActions) {
        const Span set = tables.sets[steps.candidates(t)];
        cursor = out.reserve(cursor, 2 * std::size_t{set.size});
        for (std::size_t i = 0; i < set.size; ++i) {
          if (i > 0) cursor.put(part->text);
          cursor.put(tables.texts.entry(set[i]));
        }
      } else {
        const std::int32_t shown = std::min(part->arg, t);
        cursor = out.reserve(cursor, static_cast<std::size_t>(shown) * part->body);
        for (std::int32_t i = t - shown; i < t; ++i) {
          for (const Part* p = body; p != body + part->body; ++p) {
            if (p->kind == Op::kLiteral) {
              cursor.put(p->text);
            } else if (p->kind == Op::kObservation) {
              cursor.put(tables.texts.entry(steps.observation(i)));
            } else {
              const Span set = tables.sets[steps.candidates(i)];
              const auto chosen = static_cast<std::size_t>(steps.action(i));
              // Of a step that is being overwritten it may be beyond.
              if (chosen < set.size) cursor.put(tables.texts.entry(set[chosen]));
            }
          }
        }
        body += part->body;
      }
      cursor = out.reserve(cursor, static_cast<std::size_t>(end() - part));
      part = put_texts(part + 1, texts, cursor);
    }
    return cursor;
  }

  static void check_history(const Op& op, const Tables& tables) {
    if (op.arg < 1) {
      throw ReplayFault("template history: the number of steps must be at least 1, got " +
                        std::to_string(op.arg));
    }
    if (op.body.empty()) throw ReplayFault("template history: its list of parts is empty");
    for (const Op& part : op.body) {
      if (part.kind == Op::kLiteral) {
        tables.require_text(part.arg, "template history literal");
      } else if (part.kind != Op::kObservation && part.kind != Op::kAction) {
        throw ReplayFault(
            "template history: its parts are \"literal\", \"observation\" and \"action\"");
      }
    }
  }

  std::vector<Op> ops_;
  std::vector<Part> parts_;
  std::vector<Part> bodies_;  // of all histories
  std::int32_t history_ = 0;
};

}  // namespace sacglam::replay
