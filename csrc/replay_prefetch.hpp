// A thread that keeps batches ready.
//
// Batch n depends on the seed, n and the contents alone, so that one drawn ahead is the one that
// sample() would have drawn then; what is discarded is drawn again under the same number. The
// buffer's counter counts what was handed out, so that a checkpoint continues behind that.
//
// One mutex among the thread and its consumers, held for a few instructions. Batches are drawn
// outside of it, beside producers, as by any other sampler. The thread never takes the GIL.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "replay.hpp"

namespace sacglam::replay {

class Prefetcher {
 public:
  Prefetcher(ReplayBuffer& buffer, std::size_t depth)
      : core_(std::make_unique<Core>(buffer, depth)) {}
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;
  ~Prefetcher() {
    stop();
    // In a forked process the thread does not exist, and it may have held the mutex.
    if (!is_own()) static_cast<void>(core_.release());
  }

  // False in a forked process: sample there without it.
  bool is_own() const { return ::getpid() == pid_; }

  OwnedBatch next(std::size_t rows, double beta) {
    return core_->next(rows, beta, [](const OwnedBatch&) {});
  }
  // `check(batch)` may refuse it: the next call then gets the same one.
  template <class Check>
  OwnedBatch next(std::size_t rows, double beta, const Check& check) {
    return core_->next(rows, beta, check);
  }
  void stop() {
    if (is_own()) core_->stop();
  }

 private:
  class Core {
   public:
    Core(ReplayBuffer& buffer, std::size_t depth) : buffer_(buffer), depth_(depth) {}

    template <class Check>
    OwnedBatch next(std::size_t rows, double beta, const Check& check) {
      std::unique_lock lock(mutex_);
      if (!thread_.joinable() && !stopping_) thread_ = std::thread([this] { run(); });
      for (;;) {
        if (stopping_) throw ReplayFault("the replay buffer is closed");
        const std::uint64_t version = buffer_.version();
        const std::uint64_t number = buffer_.batches();
        const bool fresh = ready_.empty() || ready_.front().version == version;
        if (!wanted_ || rows != rows_ || beta != beta_ || number != first_ || !fresh) {
          ready_.clear();
          error_ = nullptr;
          ++order_;
          wanted_ = true;
          rows_ = rows;
          beta_ = beta;
          first_ = number;
          changed_.notify_all();
        }
        if (!ready_.empty()) {
          check(ready_.front().batch);
          Drawn drawn = std::move(ready_.front());
          ready_.pop_front();
          ++first_;
          buffer_.delivered(drawn.number, rows, drawn.relabeled, drawn.redrawn);
          changed_.notify_all();
          return std::move(drawn.batch);
        }
        if (error_) {
          wanted_ = false;
          std::rethrow_exception(std::exchange(error_, nullptr));
        }
        changed_.wait(lock);
      }
    }

    void stop() {
      {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
        changed_.notify_all();
      }
      const std::lock_guard joining(joining_);
      if (thread_.joinable()) thread_.join();
    }

   private:
    struct Drawn {
      std::uint64_t number, version;
      std::size_t relabeled, redrawn;
      OwnedBatch batch;
    };

    void run() {
      Plan plan;
      std::unique_lock lock(mutex_);
      for (;;) {
        changed_.wait(lock,
                      [&] { return stopping_ || (wanted_ && !error_ && ready_.size() < depth_); });
        if (stopping_) return;
        const std::uint64_t order = order_;
        const std::size_t rows = rows_;
        const double beta = beta_;
        Drawn drawn{first_ + ready_.size(), buffer_.version(), 0, 0, {}};
        std::exception_ptr error;
        lock.unlock();
        try {
          buffer_.sample(
              rows, beta, plan, [&](const Plan& p) { return drawn.batch.make_room(p); }, nullptr,
              drawn.number);
          drawn.relabeled = plan.relabeled;
          drawn.redrawn = plan.redrawn;
        } catch (...) {
          error = std::current_exception();
        }
        lock.lock();
        if (order != order_) continue;  // asked for something else meanwhile
        if (error) {
          error_ = error;
        } else {
          ready_.push_back(std::move(drawn));
        }
        changed_.notify_all();
      }
    }

    ReplayBuffer& buffer_;
    const std::size_t depth_;
    std::mutex mutex_;
    std::mutex joining_;
    std::condition_variable changed_;
    std::thread thread_;
    std::deque<Drawn> ready_;  // batches first_, first_ + 1, ...
    std::exception_ptr error_;
    std::uint64_t order_ = 0;  // what was asked for, as a number
    std::uint64_t first_ = 0;
    std::size_t rows_ = 0;
    double beta_ = 0.0;
    bool wanted_ = false;
    bool stopping_ = false;
  };

  const pid_t pid_ = ::getpid();
  std::unique_ptr<Core> core_;
};

}  // namespace sacglam::replay
