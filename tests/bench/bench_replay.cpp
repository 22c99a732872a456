// bench_replay [--dir=DIR] [--redis=PATH] [--bytes=16384,4096] [--actors=4] [--batch=32] [--rounds=5] [--seconds=2]
//              [--only=inserts,samples,growth] [--growth=100000,1000000]
// The replay store beside bare RocksDB and Redis, in turn. Inserts: `actors` processes send through a socket, one
// request of `batch` records under way each, acknowledged after sync; RocksDB: one writer, a synced batch of 32 after
// the other, no socket; Redis: as many processes, 16 SETs pipelined each, `appendfsync always`. Needs a directory on a
// disk, with tens of gigabytes free.
#include <rocksdb/db.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <sstream>
#include <thread>

#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"
#include "replay/client.h"
#include "replay/server.h"
#include "tests/bench/bench_util.h"
#include "tests/bench/replay_load.h"

namespace quern {
namespace {

using bench::Check;
using bench::Load;
using bench::Records;
using bench::Repeat;
using bench::Run;
using bench::Seconds;
using bench::Soon;

constexpr int kRocksBatch = 32;
constexpr uint64_t kWarmRecords = 20000;

Run RunActors(const char* kind, const std::string& to, const Load& load) {
  char self[4096];
  const ssize_t size = readlink("/proc/self/exe", self, sizeof(self) - 1);
  QUERN_CHECK(size > 0);
  self[size] = 0;
  const std::string program = StrCat(self, "_actor");  // a program of its own: it cannot start benchmarks
  const double start = Seconds() + 0.5;
  std::vector<FILE*> actors;
  for (int i = 1; i <= load.actors; ++i)
    actors.push_back(popen(StrFormat("%s --kind=%s --to=%s --bytes=%zu --batch=%d --seconds=%g --index=%d --start=%.6f",
                                     program.c_str(), kind, to.c_str(), load.bytes, load.batch, load.seconds, i, start)
                               .c_str(),
                           "r"));
  Run all;
  for (FILE* actor : actors) {
    double value = 0;
    QUERN_CHECK(actor != nullptr && std::fscanf(actor, "%lf", &value) == 1, "an actor failed");
    all.records += value;
    while (std::fscanf(actor, "%lf", &value) == 1) all.latencies.push_back(value);
    pclose(actor);
  }
  return all;
}

Run QuernInserts(const std::string& directory, const Load& load) {
  auto store = Store::Open(JoinPath(directory, "replay"));
  Check(store.status());
  ReplayServer server(store->get());
  Check(server.Start("ipc://" + directory + "/store.sock"));
  Run run = RunActors("quern", server.address(), load);
  server.Stop();
  return run;
}

Run RocksInserts(const std::string& directory, const Load& load) {
  rocksdb::Options options;
  options.create_if_missing = true;
  rocksdb::DB* opened = nullptr;
  QUERN_CHECK(rocksdb::DB::Open(options, JoinPath(directory, "rocks"), &opened).ok());
  const std::unique_ptr<rocksdb::DB> db(opened);
  Records records(load.bytes, 1);
  rocksdb::WriteOptions synced;
  synced.sync = true;
  return Repeat(Seconds(), load.seconds, [&] {
    rocksdb::WriteBatch batch;
    for (int i = 0; i < kRocksBatch; ++i) {
      const std::string& bytes = records.Next();
      (void)batch.Put(records.uid().substr(0, 8), bytes);
    }
    QUERN_CHECK(db->Write(synced, &batch).ok());
    return kRocksBatch;
  });
}

Run RedisInserts(const std::string& program, const std::string& directory, const Load& load) {
  const std::string socket_path = JoinPath(directory, "redis.sock");
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (std::freopen("/dev/null", "w", stdout) == nullptr) _exit(127);
    execl(program.c_str(), program.c_str(), "--port", "0", "--unixsocket", socket_path.c_str(), "--dir",
          directory.c_str(), "--appendonly", "yes", "--appendfsync", "always", "--save", "",
          "--auto-aof-rewrite-percentage", "0", nullptr);
    _exit(127);
  }
  for (int i = 0; i < 500 && !PathExists(socket_path); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  QUERN_CHECK(PathExists(socket_path), program + " does not start");
  Run run = RunActors("redis", socket_path, load);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  return run;
}

double Percentile(std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())))];
}

struct Contender {
  const char* name;
  std::function<Run(const std::string& directory)> run;
  std::vector<double> rates;
  std::vector<double> latencies;
};

// In turn, `rounds` times, each in a folder of its own.
void Compare(const std::string& directory, int rounds, double seconds, std::vector<Contender>& contenders) {
  for (int round = 0; round < rounds; ++round)
    for (Contender& contender : contenders) {
      const std::string folder = JoinPath(directory, "run");
      Check(RemoveTree(folder));
      Check(MakeDirectories(folder));
      (void)chmod(folder.c_str(), 0700);
      const Run run = contender.run(folder);
      contender.rates.push_back(run.records / seconds);
      contender.latencies.insert(contender.latencies.end(), run.latencies.begin(), run.latencies.end());
      Check(RemoveTree(folder));
      sync();
    }
  const double ours = bench::Summarise(contenders[0].rates).median;
  for (Contender& c : contenders) {
    const bench::Spread rate = bench::Summarise(c.rates);
    std::printf("| %s | %.0f (%.0f-%.0f) | %.2f | %.2f | %.2f |\n", c.name, rate.median, rate.min, rate.max,
                ours / rate.median, Percentile(c.latencies, 0.5), Percentile(c.latencies, 0.99));
  }
  std::fflush(stdout);
}

void Inserts(const std::string& directory, const std::string& redis, const Load& load, int rounds) {
  const bench::OthersWatch others;
  std::printf("\n%zu bytes a record, %d actors, %d records a request, %d rounds of %g s\n", load.bytes, load.actors,
              load.batch, rounds, load.seconds);
  std::printf("| inserts | records/s | ours to it | commit p50 ms | p99 ms |\n| --- | --- | --- | --- | --- |\n");
  std::vector<Contender> contenders;
  contenders.push_back({"quern, through sockets", [&](const auto& d) { return QuernInserts(d, load); }, {}, {}});
  contenders.push_back({"RocksDB, synced, 32 a batch", [&](const auto& d) { return RocksInserts(d, load); }, {}, {}});
  if (!redis.empty())
    contenders.push_back({"Redis, appendfsync always, 16 pipelined",
                          [&](const auto& d) { return RedisInserts(redis, d, load); },
                          {},
                          {}});
  Compare(directory, rounds, load.seconds, contenders);
  std::printf("load %s, others %.0f %%\n", bench::LoadAverage().c_str(), 100 * others.Share());
}

Run Samples(Replay& replay, uint64_t watermark, uint64_t first_step, double seconds) {
  v1::SampleRequest request;
  request.set_watermark(watermark);
  request.set_count(64);
  request.set_seed(1);
  Check(replay.Sample(request, Soon()).status());  // sorts the candidates
  uint64_t step = first_step;
  return Repeat(Seconds(), seconds, [&] {
    request.set_step(step++);
    const auto reply = replay.Sample(request, Soon());
    Check(reply.status());
    return reply->trajectories_size();
  });
}

// Warm: everything is in the page cache.
void Sampling(const std::string& directory, size_t bytes, int rounds, double seconds) {
  const std::string folder = JoinPath(directory, "samples");
  Check(RemoveTree(folder));
  Check(MakeDirectories(folder));
  (void)chmod(folder.c_str(), 0700);
  auto store = Store::Open(JoinPath(folder, "replay"));
  Check(store.status());
  rocksdb::Options options;
  options.create_if_missing = true;
  rocksdb::DB* opened = nullptr;
  QUERN_CHECK(rocksdb::DB::Open(options, JoinPath(folder, "rocks"), &opened).ok());
  const std::unique_ptr<rocksdb::DB> db(opened);
  Records records(bytes, 1);
  std::vector<std::string> keys;
  for (uint64_t n = 0; n < kWarmRecords;) {
    v1::InsertRequest request;
    for (int i = 0; i < 100; ++i, ++n) {
      request.add_trajectories(records.Next());
      keys.push_back(records.uid());
      QUERN_CHECK(db->Put({}, keys.back(), request.trajectories(i)).ok());
    }
    Check((*store)->Insert(request).status());
  }
  QUERN_CHECK(db->Flush({}).ok() && db->CompactRange({}, nullptr, nullptr).ok());
  auto server = std::make_unique<ReplayServer>(store->get());  // gone before its store is
  Check(server->Start("ipc://" + folder + "/store.sock"));
  auto client = ReplayClient::Connect(server->address());
  Check(client.status());
  const bench::OthersWatch others;
  std::vector<double> direct, through, rocks;
  Random random(3);
  for (int round = 0; round < rounds; ++round) {
    const uint64_t step = static_cast<uint64_t>(round) * 1000;
    direct.push_back(Samples(**store, kWarmRecords, step, seconds).records / seconds);
    through.push_back(Samples(**client, kWarmRecords, step, seconds).records / seconds);
    std::string value;
    rocks.push_back(Repeat(Seconds(), seconds,
                           [&] {
                             for (int i = 0; i < 64; ++i)
                               QUERN_CHECK(db->Get({}, keys[random.Below(keys.size())], &value).ok());
                             return 64;
                           })
                        .records /
                    seconds);
  }
  server.reset();
  const double peer = bench::Summarise(rocks).median;
  std::printf(
      "\n%zu bytes a record, %llu of them, warm; batches of 64\n| sampling | records/s | to RocksDB |\n| --- | --- | "
      "--- |\n",
      bytes, static_cast<unsigned long long>(kWarmRecords));
  const auto row = [&](const char* name, const std::vector<double>& rates) {
    const bench::Spread rate = bench::Summarise(rates);
    std::printf("| %s | %.0f (%.0f-%.0f) | %.2f |\n", name, rate.median, rate.min, rate.max, rate.median / peer);
  };
  row("quern, in process", direct);
  row("quern, through a socket", through);
  row("RocksDB point reads, in process", rocks);
  std::printf("load %s, others %.0f %%\n", bench::LoadAverage().c_str(), 100 * others.Share());
  std::fflush(stdout);
  store->reset();
  Check(RemoveTree(folder));
}

// Small records: does the store become slower as it grows?
void Growth(const std::string& directory, const std::vector<uint64_t>& sizes, double seconds) {
  const std::string folder = JoinPath(directory, "growth");
  Check(RemoveTree(folder));
  auto store = Store::Open(folder);
  Check(store.status());
  Records records(200, 1);
  std::printf(
      "\nsmall records, in process, 256 an insert\n| records | inserts/s, last tenth | first draw, s | samples/s | "
      "opening, s | after a crash, s |\n| --- | --- | --- | --- | --- | --- |\n");
  uint64_t stored = 0;
  for (const uint64_t size : sizes) {
    double begin = 0;
    uint64_t counted = 0;
    while (stored < size) {
      if (begin == 0 && stored >= size - size / 10) begin = Seconds(), counted = stored;
      v1::InsertRequest request;
      for (int i = 0; i < 256; ++i) request.add_trajectories(records.Next());
      Check((*store)->Insert(request).status());
      stored += 256;
    }
    const double rate = static_cast<double>(stored - counted) / (Seconds() - begin);
    double open[2];
    for (const bool crash : {false, true}) {
      // A copy of the files that a process leaves that does not close its store.
      const std::string where = crash ? folder + ".crashed" : folder;
      if (crash) Check((*store)->Backup(where));
      store->reset();
      begin = Seconds();
      store = Store::Open(where);
      Check(store.status());
      open[crash] = Seconds() - begin;
    }
    store->reset();
    Check(RemoveTree(folder + ".crashed"));
    store = Store::Open(folder);
    Check(store.status());
    begin = Seconds();
    v1::SampleRequest request;
    request.set_watermark(stored);
    request.set_count(64);
    request.set_seed(1);
    Check((*store)->Sample(request).status());
    const double first = Seconds() - begin;
    const double samples = Samples(**store, stored, 1, seconds).records / seconds;
    std::printf("| %llu | %.0f | %.2f | %.0f | %.2f | %.2f |\n", static_cast<unsigned long long>(stored), rate, first,
                samples, open[0], open[1]);
    std::fflush(stdout);
  }
  store->reset();
  Check(RemoveTree(folder));
}

std::vector<uint64_t> Numbers(const std::string& text) {
  std::vector<uint64_t> numbers;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, ',');) numbers.push_back(std::strtoull(part.c_str(), nullptr, 10));
  return numbers;
}

int Main(int argc, char** argv) {
  const auto flag = [&](const char* name, const char* fallback) { return bench::Flag(argc, argv, name, fallback); };
  char made[] = "/var/tmp/quern-bench-XXXXXX";  // a disk: /tmp may be memory
  std::string directory = flag("dir", "");
  const bool own = directory.empty();
  if (own) directory = mkdtemp(made);
  Check(MakeDirectories(directory));
  bench::PrintHeader(argc, argv);
  const std::string only = flag("only", "inserts,samples");
  const int rounds = std::atoi(flag("rounds", "5").c_str());
  const double seconds = std::atof(flag("seconds", "2").c_str());
  for (const uint64_t bytes : Numbers(flag("bytes", "16384,4096"))) {
    const Load load{.bytes = bytes,
                    .actors = std::atoi(flag("actors", "4").c_str()),
                    .batch = std::atoi(flag("batch", "32").c_str()),
                    .seconds = seconds};
    if (only.find("inserts") != std::string::npos) Inserts(directory, flag("redis", ""), load, rounds);
    if (only.find("samples") != std::string::npos) Sampling(directory, bytes, rounds, seconds);
  }
  if (only.find("growth") != std::string::npos) Growth(directory, Numbers(flag("growth", "100000,1000000")), seconds);
  if (own) Check(RemoveTree(directory));
  return 0;
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) { return quern::Main(argc, argv); }
