// How long a weight version takes from the learner's memory to N processes: through a shared mapping on one host, and
// through tcp as for other hosts, against ZeroMQ PUB/SUB plain and with CURVE. Rounds are interleaved.
//   bench_weights [--mb=60] [--rounds=7] [--dir=/dev/shm]
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"
#include "model/hf/content_hash.h"
#include "tests/bench/bench_util.h"
#include "transport/weight_fetch.h"
#include "transport/weight_server.h"

namespace quern {
namespace {

constexpr int kReaders = 4;

// What a reader is told through its pipe.
struct Command {
  char kind = 0;  // s: subscribe, r: receive, m: map, h: map and hash, f: fetch
  int port = 0;
  char server_key[41] = {};
  char directory[200] = {};
  uint64_t bytes = 0;
  char hash[33] = {};
  uint32_t ticket_bytes = 0;  // which follow
};

void WriteAll(int fd, const void* data, size_t size) {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t wrote = write(fd, bytes, size);
    QUERN_CHECK(wrote > 0);
    bytes += wrote;
    size -= static_cast<size_t>(wrote);
  }
}

bool ReadAll(int fd, void* data, size_t size) {
  char* bytes = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t got = read(fd, bytes, size);
    if (got <= 0) return false;
    bytes += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

std::string HashOf(const std::string& directory) {
  const Result<std::string> hash = DirectoryContentHash(directory);
  QUERN_CHECK(hash.ok(), hash.status().ToString());
  return *hash;
}

// One actor: does what it is told and says so.
[[noreturn]] void Reader(int index, int commands, int answers) {
  void* context = zmq_ctx_new();
  std::map<char, void*> sockets;  // p: plain, c: CURVE
  Command command;
  while (ReadAll(commands, &command, sizeof(command))) {
    const bool curve = command.server_key[0] != '\0';
    void*& socket = sockets[curve ? 'c' : 'p'];
    switch (command.kind) {
      case 's': {
        socket = zmq_socket(context, ZMQ_SUB);
        if (curve) {
          char mine[41], secret[41];
          zmq_curve_keypair(mine, secret);
          zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, command.server_key, 41);
          zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, mine, 41);
          zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret, 41);
        }
        zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "", 0);
        QUERN_CHECK(zmq_connect(socket, StrCat("tcp://127.0.0.1:", command.port).c_str()) == 0);
        break;
      }
      case 'r': {
        zmq_msg_t message;
        do {  // the small ones say that the subscription stands
          zmq_msg_init(&message);
          QUERN_CHECK(zmq_msg_recv(&message, socket, 0) >= 0);
        } while (command.bytes > 1 && zmq_msg_size(&message) != command.bytes);
        zmq_msg_close(&message);
        break;
      }
      case 'm': {
        const Result<MappedFile> file = MappedFile::Open(StrCat(command.directory, "/model.safetensors"));
        QUERN_CHECK(file.ok() && file->bytes().size() == command.bytes);
        break;
      }
      case 'h': QUERN_CHECK(HashOf(command.directory) == command.hash); break;
      case 'f': {
        std::string bytes(command.ticket_bytes, '\0');
        QUERN_CHECK(ReadAll(commands, bytes.data(), bytes.size()));
        WeightFetchOptions options;
        options.host = "127.0.0.1";
        options.directory = StrCat(command.directory, "/fetched-", index);
        options.ticket = [&]() -> Result<v1::OpenWeightsReply> {
          v1::OpenWeightsReply ticket;
          QUERN_CHECK(ticket.ParseFromString(bytes));
          return ticket;
        };
        options.verify = [&](const std::string& where) -> Status {
          return HashOf(where) == command.hash ? Status() : DataLoss("another hash");
        };
        const Status fetched = FetchWeights(options);
        QUERN_CHECK(fetched.ok(), fetched.ToString());
        break;
      }
      default: QUERN_CHECK(false);
    }
    WriteAll(answers, "x", 1);
  }
  _exit(0);
}

class Fleet {
 public:
  Fleet() {
    for (int i = 0; i < kReaders; ++i) {
      int down[2], up[2];
      QUERN_CHECK(pipe2(down, O_CLOEXEC) == 0 && pipe2(up, O_CLOEXEC) == 0);
      const pid_t pid = fork();
      QUERN_CHECK(pid >= 0);
      if (pid == 0) {
        for (const int fd : commands_) close(fd);
        close(down[1]);
        Reader(i, down[0], up[1]);
      }
      close(down[0]);
      close(up[1]);
      commands_.push_back(down[1]);
      answers_.push_back(up[0]);
      pids_.push_back(pid);
    }
  }
  ~Fleet() {
    for (const int fd : commands_) close(fd);
    for (const pid_t pid : pids_) waitpid(pid, nullptr, 0);
  }
  void Tell(int readers, const Command& command, const std::string& ticket = {}) {
    for (int i = 0; i < readers; ++i) {
      WriteAll(commands_[static_cast<size_t>(i)], &command, sizeof(command));
      if (!ticket.empty()) WriteAll(commands_[static_cast<size_t>(i)], ticket.data(), ticket.size());
    }
  }
  void Await(int readers) {
    char answer;
    for (int i = 0; i < readers; ++i) QUERN_CHECK(ReadAll(answers_[static_cast<size_t>(i)], &answer, 1));
  }
  // Sends until every reader answers.
  void AwaitPublished(int readers, void* publisher) {
    for (int i = 0; i < readers; ++i) {
      pollfd item{answers_[static_cast<size_t>(i)], POLLIN, 0};
      while (poll(&item, 1, 5) == 0) zmq_send(publisher, "", 0, 0);
      char answer;
      QUERN_CHECK(ReadAll(item.fd, &answer, 1));
    }
  }

 private:
  std::vector<int> commands_, answers_;
  std::vector<pid_t> pids_;
};

class Bench {
 public:
  Bench(uint64_t bytes, std::string directory) : directory_(std::move(directory)), weights_(bytes, '\0') {
    Random random(1);
    for (size_t i = 0; i + 8 <= weights_.size(); i += 8) {
      const uint64_t value = random.NextU64();
      std::memcpy(weights_.data() + i, &value, 8);
    }
    Write(false, false);
    hash_ = HashOf(VersionDirectory());
    for (const bool curve : {false, true}) {
      void* socket = zmq_socket(context_, ZMQ_PUB);
      const int on = 1, hwm = 4;
      zmq_setsockopt(socket, ZMQ_SNDHWM, &hwm, sizeof(hwm));
      char public_key[41] = {}, secret[41];
      if (curve) {
        zmq_curve_keypair(public_key, secret);
        zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &on, sizeof(on));
        zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret, 41);
      }
      QUERN_CHECK(zmq_bind(socket, "tcp://127.0.0.1:*") == 0);
      char endpoint[128];
      size_t size = sizeof(endpoint);
      zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, endpoint, &size);
      publishers_[curve].socket = socket;
      publishers_[curve].port = std::atoi(std::strrchr(endpoint, ':') + 1);
      std::memcpy(publishers_[curve].key, public_key, 41);
    }
  }
  ~Bench() {
    const int none = 0;
    for (Publisher& publisher : publishers_) {
      zmq_setsockopt(publisher.socket, ZMQ_LINGER, &none, sizeof(none));
      zmq_close(publisher.socket);
    }
    (void)RemoveTree(VersionDirectory());
  }

  // Only as many subscribe as are to receive.
  double Publish(int readers, bool curve) {
    Publisher& publisher = publishers_[curve];
    Fleet fleet;  // forked after zmq_ctx_new: a reader uses a context of its own
    Command command;
    command.port = publisher.port;
    std::memcpy(command.server_key, publisher.key, 41);
    command.kind = 's';
    fleet.Tell(readers, command);
    fleet.Await(readers);
    command.kind = 'r';
    command.bytes = 1;
    fleet.Tell(readers, command);
    fleet.AwaitPublished(readers, publisher.socket);
    command.bytes = weights_.size();
    fleet.Tell(readers, command);
    const double begin = bench::Seconds();
    QUERN_CHECK(zmq_send(publisher.socket, weights_.data(), weights_.size(), 0) >= 0);
    fleet.Await(readers);
    return bench::Seconds() - begin;
  }

  // As the learner does: written beside, hashed, renamed.
  void Write(bool hash, bool sync) {
    const std::string unfinished = VersionDirectory() + ".unfinished";
    QUERN_CHECK(MakeDirectories(unfinished).ok());
    const std::string path = unfinished + "/model.safetensors";
    if (sync) {
      QUERN_CHECK(WriteFileAtomic(path, weights_).ok());
    } else {
      const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
      QUERN_CHECK(fd >= 0);
      WriteAll(fd, weights_.data(), weights_.size());
      close(fd);
    }
    if (hash) QUERN_CHECK(HashOf(unfinished) == hash_);
    QUERN_CHECK(rename(unfinished.c_str(), VersionDirectory().c_str()) == 0);
  }

  double Map(int readers, bool hash, bool sync) {
    QUERN_CHECK(RemoveTree(VersionDirectory()).ok());
    Fleet fleet;
    const double begin = bench::Seconds();
    Write(hash, sync);
    fleet.Tell(readers, Of(hash ? 'h' : 'm', VersionDirectory()));
    fleet.Await(readers);
    return bench::Seconds() - begin;
  }

  double Fetch(int readers) {
    QUERN_CHECK(RemoveTree(VersionDirectory()).ok());
    Write(false, false);
    const std::string cache = directory_ + "/cache";
    QUERN_CHECK(RemoveTree(cache).ok() && MakeDirectories(cache).ok());
    Fleet fleet;
    const auto server = WeightServer::Start({});
    QUERN_CHECK(server.ok());
    const double begin = bench::Seconds();
    const auto ticket = (*server)->Offer("v", VersionDirectory(), {"model.safetensors"});
    QUERN_CHECK(ticket.ok());
    Command command = Of('f', cache);
    const std::string bytes = ticket->SerializeAsString();
    command.ticket_bytes = static_cast<uint32_t>(bytes.size());
    fleet.Tell(readers, command, bytes);
    fleet.Await(readers);
    const double seconds = bench::Seconds() - begin;
    (void)RemoveTree(cache);
    return seconds;
  }

 private:
  struct Publisher {
    void* socket = nullptr;
    int port = 0;
    char key[41] = {};
  };
  std::string VersionDirectory() const { return directory_ + "/version"; }
  Command Of(char kind, const std::string& directory) const {
    Command command;
    command.kind = kind;
    std::strncpy(command.directory, directory.c_str(), sizeof(command.directory) - 1);
    command.bytes = weights_.size();
    std::strncpy(command.hash, hash_.c_str(), sizeof(command.hash) - 1);
    return command;
  }

  std::string directory_;
  std::string weights_;
  std::string hash_;
  void* context_ = zmq_ctx_new();
  Publisher publishers_[2];
};

int Main(int argc, char** argv) {
  bench::PrintHeader(argc, argv);
  const uint64_t bytes = 1'000'000 * std::strtoull(bench::Flag(argc, argv, "mb", "60").c_str(), nullptr, 10);
  const int rounds = std::atoi(bench::Flag(argc, argv, "rounds", "7").c_str());
  std::string folder = bench::Flag(argc, argv, "dir", "/dev/shm") + "/quern-bench-weights-XXXXXX";
  QUERN_CHECK(mkdtemp(folder.data()) != nullptr);
  {
    Bench bench(bytes, folder);
    struct Row {
      const char* name;
      std::function<double(int)> run;
      std::map<int, std::vector<double>> ms;
    };
    std::vector<Row> rows = {
        {"ZeroMQ PUB/SUB tcp, plain", [&](int n) { return bench.Publish(n, false); }, {}},
        {"ZeroMQ PUB/SUB tcp, CURVE", [&](int n) { return bench.Publish(n, true); }, {}},
        {"mapping: written, renamed, mapped", [&](int n) { return bench.Map(n, false, false); }, {}},
        {"the same, hashed by the learner and by every reader", [&](int n) { return bench.Map(n, true, false); }, {}},
        {"the same, and synced to disk first (what a job does)", [&](int n) { return bench.Map(n, true, true); }, {}},
        {"tcp, AES-256-GCM, into files, hashed", [&](int n) { return bench.Fetch(n); }, {}}};
    for (int round = 0; round <= rounds; ++round)
      for (Row& row : rows)
        for (const int readers : {1, kReaders}) {
          const double seconds = row.run(readers);
          if (round > 0) row.ms[readers].push_back(1e3 * seconds);  // the first warms up
        }
    std::printf("%s version, ms until every reader has it: median (min-max) of %d\n",
                HumanBytes(static_cast<double>(bytes)).c_str(), rounds);
    std::printf("%-55s  %-24s  %-24s\n", "", "1 reader", "4 readers");
    for (const Row& row : rows)
      std::printf("%-55s  %-24s  %-24s\n", row.name, bench::Text(bench::Summarise(row.ms.at(1))).c_str(),
                  bench::Text(bench::Summarise(row.ms.at(kReaders))).c_str());
    std::printf("# load %s\n", bench::LoadAverage().c_str());
  }
  (void)RemoveTree(folder);
  return 0;
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) { return quern::Main(argc, argv); }
