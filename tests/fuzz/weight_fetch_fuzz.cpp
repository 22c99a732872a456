#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "base/strings.h"
#include "tests/fuzz/scratch.h"
#include "transport/aes_gcm.h"
#include "transport/weight_fetch.h"
#include "transport/weight_server.h"

namespace quern {
namespace {

// Answers every reader with the same bytes, whatever it asks for, and hangs up.
class HostileServer {
 public:
  HostileServer() : listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(name);
    QUERN_CHECK(bind(listener_, reinterpret_cast<sockaddr*>(&name), size) == 0 && listen(listener_, 64) == 0);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&name), &size);
    port_ = ntohs(name.sin_port);
    std::thread([this] { Serve(); }).detach();
  }
  int port() const { return port_; }
  void Answer(std::string bytes) {
    std::lock_guard lock(mutex_);
    answer_ = std::move(bytes);
  }

 private:
  void Serve() {
    while (true) {
      const int reader = accept(listener_, nullptr, nullptr);
      if (reader < 0) continue;
      char request[kWeightRequestBytes];
      (void)recv(reader, request, sizeof(request), MSG_WAITALL);
      std::string answer;
      {
        std::lock_guard lock(mutex_);
        answer = answer_;
      }
      (void)send(reader, answer.data(), answer.size(), MSG_NOSIGNAL);
      close(reader);
    }
  }

  int listener_;
  int port_ = 0;
  std::mutex mutex_;
  std::string answer_;
};

// The stream that the ticket announces, of `bytes` over and over as often as fits; not more than 1 MiB.
std::string Seal(const v1::OpenWeightsReply& ticket, std::string_view bytes) {
  uint64_t total = 0;
  for (const v1::WeightFile& file : ticket.files()) total += file.bytes();
  std::string stream;
  if (ticket.key().size() != kGcmKeyBytes || ticket.chunk_bytes() == 0 || bytes.empty()) return stream;
  ChunkCipher cipher(ticket.key(), true);
  uint64_t written = 0;
  for (uint64_t chunk = 0; written < total && stream.size() < (1 << 20); ++chunk) {
    const auto size = static_cast<size_t>(std::min<uint64_t>({ticket.chunk_bytes(), total - written, 1 << 20}));
    std::string plain(size, '\0');
    for (size_t i = 0; i < size; ++i) plain[i] = bytes[(written + i) % bytes.size()];
    std::string sealed(size + kGcmTagBytes, '\0');
    cipher.Seal(chunk, total, {reinterpret_cast<const uint8_t*>(plain.data()), size},
                reinterpret_cast<uint8_t*>(sealed.data()));
    stream += sealed;
    written += size;
  }
  return stream;
}

}  // namespace
}  // namespace quern

// A ticket and what the weight server sends. The first byte: 1: the port of the ticket is the server's; 2: what is sent
// is sealed as the ticket says, else it is sent as it is; 4: what arrives is not what was published. Then the length of
// the ticket (two bytes), the ticket, and the bytes.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  SetLogLevel(LogLevel::kError);
  static HostileServer& server = *new HostileServer;
  if (size < 3) return 0;
  const size_t ticket_size = std::min<size_t>(data[1] + 256 * data[2], size - 3);
  v1::OpenWeightsReply ticket;
  if (!ticket.ParseFromArray(data + 3, static_cast<int>(ticket_size))) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 3 + ticket_size, size - 3 - ticket_size);
  if ((data[0] & 1) != 0) ticket.set_port(static_cast<uint32_t>(server.port()));
  if (ticket.port() != static_cast<uint32_t>(server.port()) && ticket.port() > 0 && ticket.port() < 65536) return 0;
  server.Answer((data[0] & 2) != 0 ? Seal(ticket, bytes) : std::string(bytes));

  const std::string place = Scratch() + "/weights";
  WeightFetchOptions options;
  options.host = "127.0.0.1";
  options.ticket = [&]() -> Result<v1::OpenWeightsReply> { return ticket; };
  options.directory = place + "/version";
  options.verify = [&](const std::string& directory) -> Status {
    if ((data[0] & 4) != 0) return DataLoss("other weights");
    const Result<std::vector<std::string>> names = ListDirectory(directory);
    QUERN_CHECK(names.ok() && names->size() == static_cast<size_t>(ticket.files_size()));
    for (const v1::WeightFile& file : ticket.files()) {
      const Result<std::string> contents = ReadFile(JoinPath(directory, file.name()));
      QUERN_CHECK(contents.ok() && contents->size() == file.bytes(), file.name());
    }
    return {};
  };
  options.patience = std::chrono::milliseconds(3);
  options.back_off = std::chrono::milliseconds(1);
  const Status status = FetchWeights(options);
  QUERN_CHECK(status.ok() == PathExists(options.directory), status.ToString());
  QUERN_CHECK(status.message().find('\n') == std::string::npos, status.message());
  // Nothing anywhere else.
  const std::vector<std::string> here = *ListDirectory(Scratch()), there = *ListDirectory(place);
  for (const std::string& name : here) QUERN_CHECK(name == "weights", name);
  for (const std::string& name : there)
    QUERN_CHECK(name == "version" || name == "version.part" || name == "version.lock", name);
  QUERN_CHECK(RemoveTree(place).ok());
  return 0;
}
