#include "transport/weight_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "base/deadline.h"
#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "transport/aes_gcm.h"

namespace quern {

namespace {

constexpr size_t kChunkBytes = size_t{512} << 10;
constexpr size_t kOffersKept = 8;
constexpr int kChunksATurn = 8;  // before other readers have theirs

// Besides config.json and *.safetensors: what tokenizes and what renders.
constexpr const char* kServedNames[] = {"config.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "tokenizer.model",
                                        "chat_template.jinja",
                                        "chat_template.json",
                                        "generation_config.json"};

bool IsServed(const std::string& name) {
  return name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") ||
         std::find(std::begin(kServedNames), std::end(kServedNames), name) != std::end(kServedNames);
}

struct Chunk {
  std::unique_ptr<uint8_t[]> data;
  size_t size = 0;
};

// One version. The ticket never changes; the rest belongs to the server's thread.
struct Offered {
  v1::OpenWeightsReply ticket;
  std::vector<MappedFile> files;
  uint64_t total = 0;
  std::unique_ptr<ChunkCipher> cipher;
  std::map<uint64_t, std::shared_ptr<const Chunk>> chunks;

  uint64_t chunk_count() const { return (total + kChunkBytes - 1) / kChunkBytes; }
  std::shared_ptr<const Chunk> Seal(uint64_t index) {
    const uint64_t begin = index * kChunkBytes;
    const size_t size = static_cast<size_t>(std::min<uint64_t>(kChunkBytes, total - begin));
    auto sealed = std::make_shared<Chunk>();
    sealed->size = size + kGcmTagBytes;
    sealed->data = std::make_unique_for_overwrite<uint8_t[]>(sealed->size);
    std::vector<uint8_t> gathered;
    cipher->Seal(index, total, Bytes(begin, size, gathered), sealed->data.get());
    return sealed;
  }

 private:
  // In place where one file has them all.
  std::span<const uint8_t> Bytes(uint64_t begin, size_t size, std::vector<uint8_t>& gathered) const {
    uint64_t offset = 0;
    for (const MappedFile& file : files) {
      const std::span<const uint8_t> bytes = file.bytes();
      if (begin < offset + bytes.size()) {
        const size_t from = static_cast<size_t>(begin - offset);
        const size_t count = std::min(size - gathered.size(), bytes.size() - from);
        if (count == size) return bytes.subspan(from, size);
        gathered.insert(gathered.end(), bytes.begin() + static_cast<std::ptrdiff_t>(from),
                        bytes.begin() + static_cast<std::ptrdiff_t>(from + count));
        begin += count;
        if (gathered.size() == size) break;
      }
      offset += bytes.size();
    }
    return gathered;
  }
};

struct Connection {
  int fd = -1;
  Clock::time_point heard = Clock::now();
  std::string request;
  std::shared_ptr<Offered> offered;  // once the request is whole
  uint64_t chunk = 0;
  size_t sent = 0;  // of that chunk
  std::shared_ptr<const Chunk> sealed;
  ~Connection() {
    if (fd >= 0) close(fd);
  }
};

class Server : public WeightServer {
 public:
  explicit Server(const WeightServerOptions& options) : options_(options) {}

  ~Server() override {
    if (thread_.joinable()) {
      stop_ = true;
      const uint64_t one = 1;
      QUERN_CHECK(write(wake_, &one, sizeof(one)) == sizeof(one));
      thread_.join();
    }
    for (const int fd : {listener_, wake_, epoll_})
      if (fd >= 0) close(fd);
  }

  Status Listen() {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
    addrinfo* found = nullptr;
    const std::string where = StrCat(options_.host, ":", options_.port);
    const char* host = options_.host == "*" ? nullptr : options_.host.c_str();
    if (const int error = getaddrinfo(host, std::to_string(options_.port).c_str(), &hints, &found); error != 0)
      return InvalidArgument(StrCat("weights at ", where, ": ", gai_strerror(error)));
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(found, freeaddrinfo);
    listener_ = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener_ < 0) return FromErrno(errno, "weights at " + where);
    const int on = 1;
    setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(listener_, found->ai_addr, found->ai_addrlen) != 0 || listen(listener_, 128) != 0) {
      if (errno == EADDRINUSE) return AlreadyExists("weights at " + where + ": the port is in use: take another");
      return FromErrno(errno, "weights at " + where);
    }
    sockaddr_storage name{};
    socklen_t size = sizeof(name);
    QUERN_CHECK(getsockname(listener_, reinterpret_cast<sockaddr*>(&name), &size) == 0);
    port_ = ntohs(name.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&name)->sin6_port
                                             : reinterpret_cast<sockaddr_in*>(&name)->sin_port);
    wake_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    if (wake_ < 0 || epoll_ < 0) return FromErrno(errno, "weights at " + where);
    Watch(wake_, EPOLLIN, EPOLL_CTL_ADD);
    Watch(listener_, EPOLLIN, EPOLL_CTL_ADD);
    thread_ = std::thread([this] { Serve(); });
    return {};
  }

  Result<v1::OpenWeightsReply> Offer(const std::string& id, const std::string& directory,
                                     std::vector<std::string> files) override {
    {
      std::lock_guard lock(mutex_);
      for (auto it = offers_.begin(); it != offers_.end(); ++it) {
        if (it->first != id) continue;
        offers_.splice(offers_.begin(), offers_, it);
        return offers_.front().second->ticket;
      }
    }
    if (files.empty()) {
      QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));
      for (const std::string& name : names)
        if (IsServed(name)) files.push_back(name);
    }
    if (files.empty()) return NotFound(directory + ": no model to serve");
    auto offered = std::make_shared<Offered>();
    for (const std::string& name : files) {
      QUERN_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(JoinPath(directory, name)));
      v1::WeightFile& entry = *offered->ticket.add_files();
      entry.set_name(name);
      entry.set_bytes(file.bytes().size());
      offered->total += file.bytes().size();
      offered->files.push_back(std::move(file));
    }
    const std::string key = RandomBytes(kGcmKeyBytes);
    offered->cipher = std::make_unique<ChunkCipher>(key, true);
    offered->ticket.set_key(key);
    offered->ticket.set_secret(RandomBytes(kWeightSecretBytes));
    offered->ticket.set_port(static_cast<uint32_t>(port_));
    offered->ticket.set_chunk_bytes(kChunkBytes);
    std::lock_guard lock(mutex_);
    // Somebody else may have come first: one key a version is what lets readers share chunks.
    for (const auto& [known, other] : offers_)
      if (known == id) return other->ticket;
    offers_.emplace_front(id, offered);
    while (offers_.size() > kOffersKept) offers_.pop_back();
    return offered->ticket;
  }

  int port() const override { return port_; }
  WeightServerCounters counters() const override {
    return {.connections = connections_total_, .refused = refused_, .sent_bytes = sent_, .sealed_bytes = sealed_};
  }

 private:
  void Watch(int fd, uint32_t events, int operation) {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    QUERN_CHECK(epoll_ctl(epoll_, operation, fd, &event) == 0, std::strerror(errno));
  }

  void Serve() {
    std::vector<epoll_event> events(64);
    Clock::time_point last_sweep = Clock::now();
    while (!stop_) {
      const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), 1000);
      if (count < 0) QUERN_CHECK(errno == EINTR, std::strerror(errno));
      for (int i = 0; i < count; ++i) {
        const int fd = events[static_cast<size_t>(i)].data.fd;
        if (fd == wake_) continue;
        if (fd == listener_) {
          Accept();
          continue;
        }
        const auto it = connections_.find(fd);
        if (it == connections_.end()) continue;
        Connection& connection = *it->second;
        const bool goes_on = connection.offered == nullptr ? Read(connection) : Send(connection);
        if (!goes_on) connections_.erase(it);
      }
      if (Clock::now() - last_sweep < std::chrono::seconds(1)) continue;
      last_sweep = Clock::now();
      Sweep();
    }
  }

  void Accept() {
    for (int i = 0; i < 64; ++i) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) return;
      ++connections_total_;
      auto connection = std::make_unique<Connection>();
      connection->fd = fd;
      if (connections_.size() >= static_cast<size_t>(options_.max_connections) && !MakeRoom()) {
        ++refused_;
        continue;
      }
      const int buffer = 4 << 20;
      setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
      Watch(fd, EPOLLIN, EPOLL_CTL_ADD);
      connections_[fd] = std::move(connection);
    }
  }

  // The stranger that has been silent longest goes; a reader never does.
  bool MakeRoom() {
    auto oldest = connections_.end();
    for (auto it = connections_.begin(); it != connections_.end(); ++it) {
      if (it->second->offered != nullptr) continue;
      if (oldest == connections_.end() || it->second->heard < oldest->second->heard) oldest = it;
    }
    if (oldest == connections_.end()) return false;
    ++refused_;
    connections_.erase(oldest);
    return true;
  }

  void Sweep() {
    for (auto it = connections_.begin(); it != connections_.end();) {
      const bool stranger = it->second->offered == nullptr;
      const int limit = stranger ? options_.request_timeout_s : options_.idle_timeout_s;
      if (Clock::now() - it->second->heard < std::chrono::seconds(limit)) {
        ++it;
        continue;
      }
      if (stranger) ++refused_;
      it = connections_.erase(it);
    }
  }

  bool Refuse() {
    ++refused_;
    return false;
  }

  bool Read(Connection& connection) {
    char buffer[kWeightRequestBytes];
    const ssize_t size = recv(connection.fd, buffer, kWeightRequestBytes - connection.request.size(), 0);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (size <= 0) return Refuse();
    connection.request.append(buffer, static_cast<size_t>(size));
    const size_t magic = std::min<size_t>(8, connection.request.size());
    if (connection.request.compare(0, magic, kWeightMagic, magic) != 0) return Refuse();
    if (connection.request.size() < kWeightRequestBytes) return true;
    const std::string secret = connection.request.substr(8, kWeightSecretBytes);
    std::memcpy(&connection.chunk, connection.request.data() + 8 + kWeightSecretBytes, 8);
    {
      std::lock_guard lock(mutex_);
      for (const auto& [id, offered] : offers_)
        if (offered->ticket.secret() == secret) connection.offered = offered;
    }
    if (connection.offered == nullptr || connection.chunk >= connection.offered->chunk_count()) return Refuse();
    connection.heard = Clock::now();
    Watch(connection.fd, EPOLLOUT, EPOLL_CTL_MOD);
    return Send(connection);
  }

  // False: everything is sent, or the reader has gone.
  bool Send(Connection& connection) {
    for (int turn = 0; turn < kChunksATurn;) {
      if (connection.chunk == connection.offered->chunk_count()) return false;
      if (connection.sealed == nullptr) connection.sealed = Sealed(connection.offered, connection.chunk);
      const Chunk& chunk = *connection.sealed;
      const ssize_t size =
          send(connection.fd, chunk.data.get() + connection.sent, chunk.size - connection.sent, MSG_NOSIGNAL);
      if (size < 0) return errno == EAGAIN || errno == EINTR;
      connection.heard = Clock::now();
      connection.sent += static_cast<size_t>(size);
      sent_ += static_cast<uint64_t>(size);
      if (connection.sent < chunk.size) continue;
      connection.sealed.reset();
      connection.sent = 0;
      ++connection.chunk;
      ++turn;
    }
    return true;
  }

  std::shared_ptr<const Chunk> Sealed(const std::shared_ptr<Offered>& offered, uint64_t index) {
    std::shared_ptr<const Chunk>& known = offered->chunks[index];
    if (known != nullptr) return known;
    const std::shared_ptr<const Chunk> made = known = offered->Seal(index);
    sealed_ += made->size;
    cached_bytes_ += static_cast<int64_t>(made->size);
    cached_.emplace_back(offered, index);
    // The oldest go, whoever reads them: they can be made again, with the same key the same.
    while (cached_bytes_ > options_.cache_bytes && cached_.size() > 1) {
      const auto& [owner, oldest] = cached_.front();
      const auto chunk = owner->chunks.find(oldest);
      cached_bytes_ -= static_cast<int64_t>(chunk->second->size);
      owner->chunks.erase(chunk);
      cached_.pop_front();
    }
    return made;
  }

  const WeightServerOptions options_;
  int listener_ = -1;
  int epoll_ = -1;
  int wake_ = -1;
  int port_ = 0;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> connections_total_{0};
  std::atomic<uint64_t> refused_{0};
  std::atomic<uint64_t> sent_{0};
  std::atomic<uint64_t> sealed_{0};
  std::mutex mutex_;
  std::list<std::pair<std::string, std::shared_ptr<Offered>>> offers_;  // under mutex_; the newest first
  std::map<int, std::unique_ptr<Connection>> connections_;
  std::deque<std::pair<std::shared_ptr<Offered>, uint64_t>> cached_;  // in the order they were made
  int64_t cached_bytes_ = 0;
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<WeightServer>> WeightServer::Start(const WeightServerOptions& options) {
  auto server = std::make_unique<Server>(options);
  QUERN_RETURN_IF_ERROR(server->Listen());
  return std::unique_ptr<WeightServer>(std::move(server));
}

}  // namespace quern
