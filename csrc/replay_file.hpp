// Checkpoint files: a checksummed, versioned header and payload, replaced atomically.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "replay_common.hpp"

namespace sacglam::replay {

using Bytes = std::vector<unsigned char>;

class Writer {
 public:
  explicit Writer(Bytes& out) : out_(out) {}
  template <class T>
  void put(T value) {
    static_assert(std::is_arithmetic_v<T>);
    put_array(&value, 1);
  }
  template <class T>
  void put_array(const T* data, std::size_t size) {
    static_assert(std::is_arithmetic_v<T>);
    const auto* p = reinterpret_cast<const unsigned char*>(data);
    if (size > 0) out_.insert(out_.end(), p, p + size * sizeof(T));
  }

 private:
  Bytes& out_;
};

// Every read is checked against the payload's end.
class Reader {
 public:
  Reader(const unsigned char* data, std::size_t size) : next_(data), left_(size) {}
  template <class T>
  T get() {
    T value;
    take(&value, sizeof(T));
    return value;
  }
  // A count of things that take at least `unit` bytes each.
  std::size_t get_count(std::size_t unit) {
    const auto count = get<std::uint64_t>();
    if (count > left_ / unit) fail();
    return static_cast<std::size_t>(count);
  }
  template <class T>
  std::vector<T> get_array(std::size_t size) {
    if (size > left_ / sizeof(T)) fail();
    std::vector<T> out(size);
    take(out.data(), size * sizeof(T));
    return out;
  }
  bool finished() const { return left_ == 0; }

  [[noreturn]] static void fail() {
    throw CheckpointFault("the replay checkpoint is damaged: its contents do not add up");
  }

 private:
  void take(void* to, std::size_t size) {
    if (size > left_) fail();
    if (size > 0) std::memcpy(to, next_, size);
    next_ += size;
    left_ -= size;
  }
  const unsigned char* next_;
  std::size_t left_;
};

// A word-wise chain of bijections: no change within one word can pass unnoticed, and any other
// passes with probability 2^-64.
inline std::uint64_t checksum(const unsigned char* data, std::size_t size) {
  std::uint64_t h = mix64(size + 1);
  for (; size >= 8; data += 8, size -= 8) {
    std::uint64_t word;
    std::memcpy(&word, data, 8);
    h = mix64(h ^ word);
  }
  std::uint64_t word = 0;
  if (size > 0) std::memcpy(&word, data, size);
  return mix64(h ^ word);
}

struct FileHeader {
  char magic[8];
  std::uint32_t version;
  std::uint32_t reserved;
  std::uint64_t size;      // of the payload, bytes
  std::uint64_t checksum;  // of the payload
  std::uint64_t own;       // checksum of the fields above
};
static_assert(std::is_trivially_copyable_v<FileHeader> && sizeof(FileHeader) == 40);
static_assert(std::endian::native == std::endian::little, "checkpoints are little-endian");

constexpr char kMagic[8] = {'S', 'A', 'C', 'G', 'R', 'P', 'L', '\n'};
// 2: labels of episodes; tables may have holes. 3: priorities; lists
// that were freed are left out. Older ones are still read.
constexpr std::uint32_t kVersion = 3;

inline std::uint64_t header_checksum(const FileHeader& header) {
  return checksum(reinterpret_cast<const unsigned char*>(&header), offsetof(FileHeader, own));
}

class File {
 public:
  File(const std::string& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  bool write_all(const void* data, std::size_t size) const {
    const auto* p = static_cast<const unsigned char*>(data);
    while (size > 0) {
      const ssize_t n = ::write(fd_, p, size);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      p += n;
      size -= static_cast<std::size_t>(n);
    }
    return true;
  }
  bool read_all(void* data, std::size_t size) const {
    auto* p = static_cast<unsigned char*>(data);
    while (size > 0) {
      const ssize_t n = ::read(fd_, p, size);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      p += n;
      size -= static_cast<std::size_t>(n);
    }
    return true;
  }
  bool sync() const { return ::fsync(fd_) == 0; }

 private:
  int fd_;
};

// One that was not there, and its name; errno says why it is not open.
inline File new_file_beside(const std::string& path, std::string& name) {
  static std::atomic<unsigned> serial{0};
  for (;;) {
    name = path + ".tmp." + std::to_string(::getpid()) + "." +
           std::to_string(serial.fetch_add(1, std::memory_order_relaxed));
    File file(name, O_WRONLY | O_CREAT | O_EXCL);
    // A killed process may have left one: in containers pids are used again.
    if (file.is_open() || errno != EEXIST) return file;
  }
}

// After a crash at any instruction, `path` holds either what it held before or all of `payload`.
inline void write_checkpoint(const std::string& path, const Bytes& payload) {
  FileHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.size = payload.size();
  header.checksum = checksum(payload.data(), payload.size());
  header.own = header_checksum(header);

  std::string temporary;
  const auto fail = [&](const char* what) {
    const std::string reason = std::strerror(errno);
    ::unlink(temporary.c_str());
    throw CheckpointFault("cannot save the replay buffer to '" + path + "': " + what + ": " +
                          reason + "; what the file held before is untouched");
  };
  {
    const File file = new_file_beside(path, temporary);
    if (!file.is_open()) fail("creating a temporary file beside it");
    if (!file.write_all(&header, sizeof header)) fail("writing");
    if (!file.write_all(payload.data(), payload.size())) fail("writing");
    if (!file.sync()) fail("fsync");
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) fail("renaming the temporary file");
  const std::size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const File directory(folder, O_RDONLY | O_DIRECTORY);
  if (directory.is_open()) directory.sync();  // not every file system offers this; the data is safe
}

struct Checkpoint {
  std::uint32_t version;
  Bytes payload;
};

inline Checkpoint read_checkpoint(const std::string& path) {
  const auto refuse = [&](const std::string& why) {
    throw CheckpointFault("cannot load the replay checkpoint '" + path + "': " + why);
  };
  const File file(path, O_RDONLY);
  if (!file.is_open()) refuse(std::strerror(errno));
  struct stat info{};
  if (::fstat(file.fd(), &info) != 0) refuse(std::strerror(errno));
  if (!S_ISREG(info.st_mode)) refuse("it is not a regular file");
  FileHeader header{};
  if (static_cast<std::size_t>(info.st_size) < sizeof header ||
      !file.read_all(&header, sizeof header) ||
      std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    refuse("it was not written by ReplayBuffer.save");
  }
  if (header.own != header_checksum(header)) refuse("its header is damaged");
  if (header.version < 1 || header.version > kVersion) {
    refuse("it has format version " + std::to_string(header.version) + ", this build reads 1 to " +
           std::to_string(kVersion));
  }
  if (header.size != static_cast<std::size_t>(info.st_size) - sizeof header) {
    refuse("it is " + std::to_string(info.st_size) + " bytes long, its header says " +
           std::to_string(header.size + sizeof header) + "; it was cut short or appended to");
  }
  Bytes payload(static_cast<std::size_t>(header.size));
  if (!file.read_all(payload.data(), payload.size())) refuse("reading it failed");
  if (checksum(payload.data(), payload.size()) != header.checksum) {
    refuse("its checksum does not match; it is damaged");
  }
  return {header.version, std::move(payload)};
}

}  // namespace sacglam::replay
