#include "transport/weight_fetch.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "transport/aes_gcm.h"
#include "transport/weight_server.h"

namespace quern {

namespace {

constexpr int kMostFiles = 10'000;
constexpr uint64_t kMostBytes = uint64_t{1} << 44;  // 16 TiB
constexpr uint32_t kMostChunkBytes = 64u << 20;
constexpr auto kConnectPatience = std::chrono::seconds(5);
constexpr auto kLongestBackOff = std::chrono::seconds(1);

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

Status CheckTicket(const v1::OpenWeightsReply& ticket) {
  uint64_t total = 0;
  std::set<std::string> names;
  bool good = ticket.files_size() > 0 && ticket.files_size() <= kMostFiles && ticket.key().size() == kGcmKeyBytes &&
              ticket.secret().size() == kWeightSecretBytes && ticket.chunk_bytes() > 0 &&
              ticket.chunk_bytes() <= kMostChunkBytes && ticket.port() > 0 && ticket.port() < 65536;
  for (const v1::WeightFile& file : ticket.files()) {
    const std::string& name = file.name();
    good = good && !name.empty() && name[0] != '.' && name.size() < 256 && name.find('/') == std::string::npos &&
           name.find('\0') == std::string::npos && names.insert(name).second && file.bytes() <= kMostBytes &&
           (total += file.bytes()) <= kMostBytes;
  }
  return good && total > 0 ? Status() : DataLoss("the coordinator's ticket for weights makes no sense");
}

// The files of a version that is not whole yet, written one after the other.
class Parts {
 public:
  Parts(std::string directory, const v1::OpenWeightsReply& ticket) : directory_(std::move(directory)) {
    for (const v1::WeightFile& file : ticket.files()) {
      files_.emplace_back(file.name(), file.bytes());
      total_ += file.bytes();
    }
  }
  uint64_t total() const { return total_; }
  uint64_t written() const { return written_; }

  // Keeps as many whole chunks as are there.
  Status Resume(uint64_t chunk_bytes) {
    QUERN_RETURN_IF_ERROR(MakeDirectories(directory_));
    written_ = 0;
    for (const auto& [name, bytes] : files_) {
      struct stat info;
      const uint64_t there =
          stat(Path(name).c_str(), &info) == 0 && S_ISREG(info.st_mode) ? static_cast<uint64_t>(info.st_size) : 0;
      written_ += std::min(there, bytes);
      if (there < bytes) break;
    }
    if (written_ < total_) written_ -= written_ % chunk_bytes;
    uint64_t offset = 0;
    for (const auto& [name, bytes] : files_) {
      const uint64_t keep = std::min(bytes, written_ - std::min(written_, offset));
      offset += bytes;
      if (truncate(Path(name).c_str(), static_cast<off_t>(keep)) != 0 && errno != ENOENT)
        return FromErrno(errno, Path(name));
    }
    return {};
  }

  Status Append(std::span<const uint8_t> bytes) {
    while (!bytes.empty()) {
      uint64_t end = 0;
      size_t index = 0;
      while (end + files_[index].second <= written_) end += files_[index++].second;
      const auto& [name, size] = files_[index];
      if (file_.get() < 0 || open_ != index) {
        file_ = Descriptor(open(Path(name).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
        if (file_.get() < 0) return FromErrno(errno, Path(name));
        open_ = index;
      }
      const size_t count = static_cast<size_t>(std::min<uint64_t>(bytes.size(), end + size - written_));
      const ssize_t wrote = write(file_.get(), bytes.data(), count);
      if (wrote < 0) {
        if (errno == EINTR) continue;
        return FromErrno(errno, Path(name));
      }
      bytes = bytes.subspan(static_cast<size_t>(wrote));
      written_ += static_cast<uint64_t>(wrote);
    }
    return {};
  }

  // Files without bytes are there as well.
  Status Finish() {
    for (const auto& [name, bytes] : files_) {
      if (bytes > 0) continue;
      const Descriptor made(open(Path(name).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
      if (made.get() < 0) return FromErrno(errno, Path(name));
    }
    return {};
  }

 private:
  std::string Path(const std::string& name) const { return JoinPath(directory_, name); }

  std::string directory_;
  std::vector<std::pair<std::string, uint64_t>> files_;
  uint64_t total_ = 0;
  uint64_t written_ = 0;
  size_t open_ = 0;
  Descriptor file_;
};

class Fetch {
 public:
  Fetch(const WeightFetchOptions& options, WeightFetchCounters& counters) : options_(options), counters_(counters) {}

  Status Run() {
    const std::filesystem::path parent = std::filesystem::path(options_.directory).parent_path();
    if (!parent.empty()) QUERN_RETURN_IF_ERROR(MakeDirectories(parent));
    const std::string lock_path = options_.directory + ".lock";
    const Descriptor lock(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (lock.get() < 0) return FromErrno(errno, lock_path);
    while (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK && errno != EINTR) return FromErrno(errno, lock_path);
      QUERN_RETURN_IF_ERROR(Alive());
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    if (PathExists(options_.directory)) {
      if (options_.verify(options_.directory).ok()) return {};
      LogWarning(options_.directory + ": is not what was published; it is fetched again");
      QUERN_RETURN_IF_ERROR(RemoveTree(options_.directory));
    }
    const std::string part = options_.directory + ".part";
    for (int attempt = 0;; ++attempt) {
      QUERN_RETURN_IF_ERROR(Receive(part));
      const Status verified = options_.verify(part);
      if (verified.ok()) break;
      // What an earlier process left may be damaged: once more from the start.
      QUERN_RETURN_IF_ERROR(RemoveTree(part));
      if (attempt > 0) return verified;
      LogWarning(verified.message() + "; it is fetched once more");
    }
    if (rename(part.c_str(), options_.directory.c_str()) != 0) return FromErrno(errno, options_.directory);
    return {};
  }

 private:
  Status Alive() {
    if (options_.alive == nullptr || Clock::now() - last_alive_ < std::chrono::seconds(1)) return {};
    last_alive_ = Clock::now();
    return options_.alive();
  }

  Status Receive(const std::string& part) {
    Duration back_off = options_.back_off;
    Clock::time_point progress = Clock::now();
    uint64_t written = 0;
    while (true) {
      const Result<v1::OpenWeightsReply> ticket = options_.ticket();
      Status last = ticket.status();
      if (ticket.ok()) {
        QUERN_RETURN_IF_ERROR(CheckTicket(*ticket));
        Parts parts(part, *ticket);
        QUERN_RETURN_IF_ERROR(parts.Resume(ticket->chunk_bytes()));
        last = ReceiveFrom(*ticket, parts);
        if (parts.written() == parts.total()) return parts.Finish();
        if (parts.written() > written) {
          progress = Clock::now();
          back_off = options_.back_off;
        }
        written = parts.written();
      }
      if (last.code() != StatusCode::kUnavailable && last.code() != StatusCode::kDeadlineExceeded) return last;
      if (Clock::now() - progress > options_.patience)
        return DeadlineExceeded(StrFormat("weights from %s: nothing came for %.1f s: %s", options_.host.c_str(),
                                          SecondsSince(progress), last.message().c_str()));
      QUERN_RETURN_IF_ERROR(Alive());
      std::this_thread::sleep_for(back_off);
      back_off = std::min<Duration>(2 * back_off, kLongestBackOff);
    }
  }

  Result<Descriptor> Connect(uint32_t port, const std::string& where) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (const int error = getaddrinfo(options_.host.c_str(), std::to_string(port).c_str(), &hints, &found); error != 0)
      return Unavailable(where + ": " + gai_strerror(error));
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(found, freeaddrinfo);
    Descriptor fd(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd.get() < 0) return FromErrno(errno, where);
    const int buffer = 4 << 20;
    setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer));
    if (connect(fd.get(), found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS)
      return Unavailable(where + ": " + std::strerror(errno));
    pollfd item{fd.get(), POLLOUT, 0};
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(kConnectPatience).count();
    if (poll(&item, 1, static_cast<int>(ms)) <= 0) return Unavailable(where + ": no connection");
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return Unavailable(where + ": " + std::strerror(error));
    return fd;
  }

  Status ReceiveFrom(const v1::OpenWeightsReply& ticket, Parts& parts) {
    if (parts.written() == parts.total()) return {};
    const std::string where = StrCat("weights from ", options_.host, ":", ticket.port());
    QUERN_ASSIGN_OR_RETURN(const Descriptor fd, Connect(ticket.port(), where));
    ++counters_.connections;
    uint64_t chunk = parts.written() / ticket.chunk_bytes();
    std::string request(kWeightMagic, 8);
    request += ticket.secret();
    request.append(reinterpret_cast<const char*>(&chunk), sizeof(chunk));
    if (send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size()))
      return Unavailable(where + ": the connection was lost");
    ChunkCipher cipher(ticket.key(), false);
    std::vector<uint8_t> buffer(ticket.chunk_bytes() + kGcmTagBytes);
    for (; parts.written() < parts.total(); ++chunk) {
      const auto size = static_cast<size_t>(std::min<uint64_t>(ticket.chunk_bytes(), parts.total() - parts.written()));
      const std::span<uint8_t> sealed = std::span(buffer).first(size + kGcmTagBytes);
      QUERN_RETURN_IF_ERROR(ReceiveWhole(fd.get(), sealed, where));
      if (!cipher.Open(chunk, parts.total(), sealed))
        return Unavailable(StrCat(where, ": chunk ", chunk, " was changed on the way"));
      QUERN_RETURN_IF_ERROR(parts.Append(sealed.first(size)));
      QUERN_RETURN_IF_ERROR(Alive());
    }
    return {};
  }

  Status ReceiveWhole(int fd, std::span<uint8_t> bytes, const std::string& where) {
    const Clock::time_point begin = Clock::now();
    for (size_t have = 0; have < bytes.size();) {
      const ssize_t got = recv(fd, bytes.data() + have, bytes.size() - have, 0);
      if (got == 0) return Unavailable(where + ": the connection was lost");
      if (got > 0) {
        have += static_cast<size_t>(got);
        counters_.received_bytes += static_cast<uint64_t>(got);
        continue;
      }
      if (errno != EAGAIN && errno != EINTR) return Unavailable(where + ": " + std::strerror(errno));
      QUERN_RETURN_IF_ERROR(Alive());
      if (Clock::now() - begin > options_.patience) return Unavailable(where + ": too slow");
      pollfd item{fd, POLLIN, 0};
      poll(&item, 1, 1000);
    }
    return {};
  }

  const WeightFetchOptions& options_;
  WeightFetchCounters& counters_;
  Clock::time_point last_alive_ = Clock::now();
};

}  // namespace

Status FetchWeights(const WeightFetchOptions& options, WeightFetchCounters* counters) {
  WeightFetchCounters own;
  return Fetch(options, counters == nullptr ? own : *counters).Run();
}

}  // namespace quern
