// The interned lists of a buffer: token texts, and candidate sets (lists of text ids).
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "replay_intern.hpp"

namespace sacglam::replay {

struct Tables {
  explicit Tables(Reclaimer& reclaimer, TableSource* text_source = nullptr,
                  TableSource* set_source = nullptr, bool frees = false)
      : texts(reclaimer, text_source, frees), sets(reclaimer, set_source, frees) {}
  InternTable texts;
  InternTable sets;

  // Of views: what another process has interned becomes known here, if it is sound; a set's texts
  // before it. A text stays where it is. A set is copied: its ids are used as they are, so that
  // those looked at here must be those.
  bool adopt_text(std::int32_t id) {
    if (texts.contains(id)) return true;
    const Span text = texts.find_at_source(id);
    for (std::size_t i = 0; i < text.size; ++i) {
      if (text[i] < 0) return false;
    }
    return texts.adopt(id);
  }
  bool adopt_set(std::int32_t id) {
    if (sets.contains(id)) return true;
    const std::vector<std::int32_t> ids = sets.find_at_source(id).ids();
    const auto known = [&](std::int32_t text) { return adopt_text(text); };
    if (ids.empty() || !std::all_of(ids.begin(), ids.end(), known)) return false;
    sets.adopt_copy(id, ids);
    return true;
  }

  std::int32_t intern_text(const std::int32_t* ids, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) {
      if (ids[i] < 0) {
        throw ReplayFault("token ids must not be negative: got " + std::to_string(ids[i]) +
                          " at position " + std::to_string(i));
      }
    }
    const std::int32_t id = texts.intern(ids, size);
    if (!adopt_text(id)) throw ReplayFault(kDamaged);
    return id;
  }

  std::int32_t intern_candidates(const std::int32_t* ids, std::size_t size) {
    if (size == 0) throw ReplayFault("a candidate set needs at least one action text");
    for (std::size_t i = 0; i < size; ++i) adopt_text(ids[i]);
    for (std::size_t i = 0; i < size; ++i) require_text(ids[i], "candidate");
    std::vector<std::int32_t> sorted(ids, ids + size);
    std::sort(sorted.begin(), sorted.end());
    const auto twin = std::adjacent_find(sorted.begin(), sorted.end());
    if (twin != sorted.end()) {
      throw ReplayFault("a candidate set must not repeat an action: text id " +
                        std::to_string(*twin) + " is given twice");
    }
    const std::int32_t id = sets.intern(ids, size);
    if (!adopt_set(id)) throw ReplayFault(kDamaged);
    return id;
  }

  void require_text(std::int32_t id, const char* what) const {
    if (!texts.contains(id))
      throw ReplayFault(range_message(what, id, "text", texts.size(), texts.frees()));
  }
  void require_set(std::int32_t id, const char* what) const {
    if (!sets.contains(id)) {
      throw ReplayFault(range_message(what, id, "candidate set", sets.size(), sets.frees()));
    }
  }

 private:
  static constexpr const char* kDamaged =
      "the memory of the shared buffer is damaged: what was interned is not there";

  static std::string range_message(const char* what, std::int32_t id, const char* table,
                                   std::int32_t size, bool frees) {
    return std::string(what) + ": id " + std::to_string(id) + " is not an interned " + table +
           " (" + std::to_string(size) + " ids were given); intern it first" +
           (frees ? ", and anew when no stored episode uses it any more: it was freed" : "");
  }
};

}  // namespace sacglam::replay
