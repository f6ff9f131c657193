// Who owns something in shared memory, and whether that process is still alive.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

namespace sacglam::replay {

// A process in one word: start time (clock ticks since boot, 42 bits) and pid (22 bits). A pid
// alone is reused; together they never are. 0 is nobody.
struct Owner {
  std::uint64_t word = 0;

  static constexpr unsigned kPidBits = 22;  // Linux's largest pid_max is 2^22

  pid_t pid() const { return static_cast<pid_t>(word & ((std::uint64_t{1} << kPidBits) - 1)); }

  static Owner self() {
    return {status_of(::getpid()).start << kPidBits | static_cast<std::uint64_t>(::getpid())};
  }

  // True only when it is certain: a process that is stopped, or cannot be looked at, is not dead.
  bool is_dead() const {
    if (word == 0) return true;
    const Status status = status_of(pid());
    if (status.start == kUnknown) return false;
    if (status.start == 0) return true;
    return status.ended || (status.start << kPidBits >> kPidBits) != word >> kPidBits;
  }

  // The pid namespace: a pid says nothing about a process in another one.
  static std::uint64_t name_space() {
    struct stat info{};
    return ::stat("/proc/self/ns/pid", &info) == 0 ? static_cast<std::uint64_t>(info.st_ino) : 0;
  }

 private:
  static constexpr std::uint64_t kUnknown = ~std::uint64_t{0};
  struct Status {
    std::uint64_t start;  // 0: no such process
    bool ended;           // a zombie: its parent has not asked for it yet
  };

  // Fields 3 (state), 20 (threads) and 22 (start) of /proc/<pid>/stat, see proc(5). The name,
  // field 2, may hold anything, so that one counts from its closing bracket.
  static Status status_of(pid_t pid) {
    const std::string path = "/proc/" + std::to_string(pid) + "/stat";
    std::FILE* file = std::fopen(path.c_str(), "re");
    if (file == nullptr) return {::access("/proc/self/stat", R_OK) == 0 ? 0 : kUnknown, false};
    char text[1024];
    const std::size_t size = std::fread(text, 1, sizeof text - 1, file);
    std::fclose(file);
    text[size] = '\0';
    if (size == 0) return {0, false};  // it went away in between
    const char* after_name = std::strrchr(text, ')');
    char state = '?';
    long threads = 0;
    unsigned long long start = 0;
    const int fields =
        after_name == nullptr
            ? 0
            : std::sscanf(after_name + 1,
                          " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %ld "
                          "%*d %llu",
                          &state, &threads, &start);
    if (fields != 3) return {kUnknown, false};
    // The first thread of a process may end before the others: that is not its death.
    return {start == 0 ? 1 : start, (state == 'Z' || state == 'X') && threads <= 1};
  }
};

}  // namespace sacglam::replay
