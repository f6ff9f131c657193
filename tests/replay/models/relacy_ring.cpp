// The production template Ring under Relacy: a writer evicts and overwrites, or replaces the
// block by a larger one, while a reader copies an element.
//
// Usage: relacy_ring [CONTEXT_BOUND]; exit status 1 when an order breaks a promise.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>

#include "replay_ring.hpp"

// Its macros (delete, memory_order_*, $) would break other headers: those come first.
#include <relacy/relacy.hpp>

#include "relacy_sync.hpp"

namespace {

using namespace sacglam::replay;
using TestRing = Ring<std::uint64_t, RelacySync>;

// What the element at a position holds, in any lap; no place ever holds it at another one.
std::uint64_t element(std::uint64_t position) { return position * 10 + 7; }

// Which element the reader takes: the oldest, which the writer is about to overwrite, the newest of
// its view, or one that came later: it heard of it elsewhere, as from a goal's index.
enum Which { kOldest, kNewest, kLater };

// The writer is thread 0. The reader walks the sampler's whole path: a view, and a checked read.
template <class Derived, Which kWhich>
struct RingTest : rl::test_suite<Derived, 2> {
  struct Made {
    Reclaimer reclaimer;  // a replaced block stays: it is freed at the end of the order
    TestRing ring{reclaimer, Derived::kPlaces};
  };
  std::optional<Made> made;

  void before() {
    made.emplace();
    made->ring.restart(0);
    for (std::uint64_t p = 0; p < Derived::kPlaces; ++p) made->ring.push(element(p));
    made->ring.publish();
  }
  void after() { made.reset(); }

  void thread(unsigned index) {
    TestRing& ring = made->ring;
    if (index == 0) return Derived::write(ring);
    const TestRing::View view(ring);
    RL_ASSERT(view.head() < view.tail());  // a store that held something is never seen empty
    std::uint64_t position = kWhich == kOldest ? view.head() : view.tail() - 1;
    if (kWhich == kLater) position = ring.tail() - 1;
    std::uint64_t value = 0;
    if (view.read(position, value)) RL_ASSERT(value == element(position));
  }

  static void evict_to(TestRing& ring, std::uint64_t head) {
    ring.advance_head(head);
    TestRing::begin_writing();
  }
  static void add(TestRing& ring) {
    ring.push(element(ring.next()));
    ring.publish();
  }
};

// Two places, both full: each addition takes the place of the oldest element.
template <Which kWhich>
struct Lap : RingTest<Lap<kWhich>, kWhich> {
  static constexpr std::size_t kPlaces = 2;
  static void write(TestRing& ring) {
    Lap::evict_to(ring, 1);
    Lap::add(ring);
    Lap::evict_to(ring, 2);
    Lap::add(ring);
  }
};

// One place, full: the ring grows, and the larger block goes into its second lap.
template <Which kWhich>
struct Growth : RingTest<Growth<kWhich>, kWhich> {
  static constexpr std::size_t kPlaces = 1;
  static void write(TestRing& ring) {
    Growth::add(ring);
    Growth::evict_to(ring, 1);
    Growth::add(ring);
  }
};

template <class Test>
bool sound(const char* name, unsigned bound) {
  rl::test_params params;
  params.search_type = rl::sched_bound;
  params.context_bound = bound;
  const bool result = rl::simulate<Test>(params);
  std::printf("%s: orders %u sound %d\n", name, static_cast<unsigned>(params.stop_iteration),
              result);
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  const auto bound = static_cast<unsigned>(argc > 1 ? std::atoi(argv[1]) : 2);
  const bool all =
      sound<Lap<kOldest>>("oldest, lap", bound) && sound<Lap<kNewest>>("newest, lap", bound) &&
      sound<Lap<kLater>>("later, lap", bound) && sound<Growth<kOldest>>("oldest, growth", bound) &&
      sound<Growth<kNewest>>("newest, growth", bound) &&
      sound<Growth<kLater>>("later, growth", bound);
  return all ? 0 : 1;
}
