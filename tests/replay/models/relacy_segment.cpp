// The production template Segment under Relacy, which tries the orders in which threads
// may run and in which the memory model lets them see each other's stores.
//
// Usage: relacy_segment [CONTEXT_BOUND]; exit status 1 when an order breaks a promise.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "replay_segment.hpp"

// Its macros (delete, memory_order_*, $) would break other headers: those come first.
#include <relacy/relacy.hpp>

#include "relacy_sync.hpp"

namespace {

using namespace sacglam::replay;

// Two producers take the same segment one after the other, a reader copies from it meanwhile.
struct SegmentTest : rl::test_suite<SegmentTest, 3> {
  static constexpr std::uint64_t kWords = 2;
  SegmentHead<RelacySync> head;
  rl::atomic<std::uint64_t> words[kWords];

  void before() {
    head.control.store(0, rl::mo_relaxed, $);
    head.fill.store(0, rl::mo_relaxed, $);
    for (auto& w : words) w.store(0, rl::mo_relaxed, $);
  }
  void thread(unsigned index) {
    Segment<RelacySync> segment(head, words);
    if (index < 2) {
      const std::uint64_t ticket = index + 1;
      std::uint64_t seen = segment.control();
      if (Control::is_open(seen) || Control::ticket(seen) >= ticket) return;
      if (Control::is_spared(seen)) {
        segment.unspare(seen);
        seen = segment.control();
      }
      if (!segment.claim(seen, ticket, index)) return;
      for (std::uint64_t i = 0; i < kWords; ++i) {
        segment.put(i, ticket * 10 + i);
        segment.publish(ticket, i + 1);
      }
      RL_ASSERT(segment.seal(Control::pack(ticket, index, true), index == 0));
      return;
    }
    const std::uint64_t fill = segment.fill();
    std::uint64_t copy[kWords] = {};
    for (std::uint64_t i = 0; i < Fill::count(fill); ++i) copy[i] = segment.peek(i);
    const std::uint64_t ticket = fill >> Fill::kCountBits;
    if (!segment.still(ticket)) return;
    for (std::uint64_t i = 0; i < Fill::count(fill); ++i) RL_ASSERT(copy[i] == ticket * 10 + i);
  }
};

}  // namespace

int main(int argc, char** argv) {
  rl::test_params params;
  params.search_type = rl::sched_bound;
  params.context_bound = static_cast<unsigned>(argc > 1 ? std::atoi(argv[1]) : 2);
  const bool sound = rl::simulate<SegmentTest>(params);
  std::printf("orders %u sound %d\n", static_cast<unsigned>(params.stop_iteration), sound);
  return sound ? 0 : 1;
}
