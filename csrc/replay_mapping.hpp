// A named piece of shared memory.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "replay_common.hpp"

namespace sacglam::replay {

class Mapping {
 public:
  // Memory of `bytes` that are not there yet: see reserve(). Until publish(), nobody else can
  // create one of this name; if this process is killed before, the next one may. Where the name is
  // taken, `may_replace(old)` throws, unless nobody needs it any more.
  template <class MayReplace>
  static Mapping create(const std::string& name, std::size_t bytes, const MayReplace& may_replace) {
    for (;;) {
      Mapping m(name, ::shm_open(path_of(name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
      if (m.fd_ < 0) m.fail("creating it");
      // The system gives the lock back for a process that is killed. Which of several creators
      // made the file does not matter: who has the lock goes on.
      if (::flock(m.fd_, LOCK_EX | LOCK_NB) != 0) {
        throw ReplayFault("the shared buffer '" + name +
                          "' is just being made by another process: attach to it, or choose "
                          "another name");
      }
      if (!m.has_its_name()) continue;  // it was removed between the two calls
      if (m.size() > 0) {
        m.map();
        may_replace(m);
        unlink(name);  // who still uses it keeps it
        continue;
      }
      if (::ftruncate(m.fd_, static_cast<off_t>(bytes)) != 0) {
        const int reason = errno;
        unlink(name);
        errno = reason;
        m.fail("giving it its size");
      }
      m.map();
      return m;
    }
  }
  void publish() const { ::flock(fd_, LOCK_UN); }
  static Mapping open(const std::string& name) {
    Mapping m(name, ::shm_open(path_of(name).c_str(), O_RDWR | O_CLOEXEC, 0600));
    if (m.fd_ < 0) m.fail("opening it");
    m.map();
    return m;
  }
  // The same memory once more, even when its name is gone.
  Mapping duplicate() const {
    Mapping m(name_, ::fcntl(fd_, F_DUPFD_CLOEXEC, 0));
    if (m.fd_ < 0) m.fail("duplicating it");
    m.map();
    return m;
  }
  // Whether the name is still that of this memory.
  bool has_its_name() const {
    const int fd = ::shm_open(path_of(name_).c_str(), O_RDONLY | O_CLOEXEC, 0600);
    if (fd < 0) return false;
    struct stat mine{}, named{};
    const bool known = ::fstat(fd_, &mine) == 0 && ::fstat(fd, &named) == 0;
    ::close(fd);
    return known && mine.st_dev == named.st_dev && mine.st_ino == named.st_ino;
  }
  static void unlink(const std::string& name) { ::shm_unlink(path_of(name).c_str()); }

  static void check_name(const std::string& name) {
    const bool known = !name.empty() && name.size() <= 200 &&
                       name.find_first_not_of(
                           "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                           "0123456789_.-") == std::string::npos;
    if (!known) {
      throw ReplayFault(
          "a shared buffer's name is 1 to 200 letters, digits, '_', '.' or '-', got '" + name +
          "'");
    }
  }

  Mapping(Mapping&& other) noexcept
      : name_(std::move(other.name_)),
        fd_(std::exchange(other.fd_, -1)),
        data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data_ != nullptr) ::munmap(data_, bytes_);
    if (fd_ >= 0) ::close(fd_);
  }

  // Takes the memory from the system now: a page that cannot be had later would be SIGBUS.
  void reserve(std::size_t begin, std::size_t end) const {
    int error = EINTR;
    while (error == EINTR) {
      error = ::posix_fallocate(fd_, static_cast<off_t>(begin), static_cast<off_t>(end - begin));
    }
    if (error != 0) {
      throw ReplayFault("the shared buffer '" + name_ + "' needs " + std::to_string(end - begin) +
                        " more bytes of shared memory, and the system has no more (" +
                        std::strerror(error) + "); enlarge /dev/shm or give a smaller capacity");
    }
  }

  unsigned char* data() const { return static_cast<unsigned char*>(data_); }
  std::size_t bytes() const { return bytes_; }
  const std::string& name() const { return name_; }

 private:
  Mapping(std::string name, int fd) : name_(std::move(name)), fd_(fd) {}

  static std::string path_of(const std::string& name) { return "/sacglam-" + name; }

  [[noreturn]] void fail(const char* doing) const {
    throw ReplayFault("the shared buffer '" + name_ + "': " + doing +
                      " failed: " + std::strerror(errno));
  }
  std::size_t size() const {
    struct stat info{};
    if (::fstat(fd_, &info) != 0) fail("asking for its size");
    return static_cast<std::size_t>(info.st_size);
  }
  void map() {
    const std::size_t bytes = size();
    if (bytes == 0) throw ReplayFault("the shared buffer '" + name_ + "' is not ready yet");
    void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (data == MAP_FAILED) fail("mapping it");
    data_ = data;
    bytes_ = bytes;
  }

  std::string name_;
  int fd_ = -1;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace sacglam::replay
