// bench_replay [DIRECTORY]: inserts acknowledged after sync and samples, through a server on ipc. Each line is the
// median of five runs of two seconds, with the lowest and the highest.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>

#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"
#include "replay/client.h"
#include "replay/server.h"

namespace quern {
namespace {

constexpr double kSeconds = 2;
constexpr int kRuns = 5;

Deadline Soon() { return Deadline::After(std::chrono::seconds(60)); }

// 16 KiB as sent: 1,820 tokens of 9 bytes (id, mask, log-probability), about half compressible.
std::string MakeRecord(Random& random, const std::string& uid) {
  constexpr uint32_t kTokens = 1820;
  v1::Trajectory t;
  t.set_uid(uid);
  t.set_source(v1::SOURCE_GENERATED);
  t.set_generation_depth(1);
  for (uint32_t i = 0; i < kTokens; ++i) {
    const auto id = static_cast<int32_t>(random.Below(32000));
    const float log_prob = -random.UniformFloat();
    t.mutable_token_ids()->append(reinterpret_cast<const char*>(&id), 4);
    t.mutable_log_probs()->append(reinterpret_cast<const char*>(&log_prob), 4);
    t.mutable_loss_mask()->push_back(1);
  }
  v1::Turn* turn = t.add_turns();
  turn->set_end(kTokens);
  turn->set_reward(random.UniformFloat());
  t.set_episode_return(turn->reward());
  return t.SerializeAsString();
}

void Report(const char* what, const std::function<double()>& run) {
  std::vector<double> rates;
  for (int i = 0; i < kRuns; ++i) rates.push_back(run());
  std::sort(rates.begin(), rates.end());
  std::printf("%-58s %8.0f/s  (%.0f-%.0f)\n", what, rates[kRuns / 2], rates.front(), rates.back());
  std::fflush(stdout);
}

double Inserts(const std::string& address, int clients, int per_request) {
  std::atomic<uint64_t> inserted{0};
  std::vector<std::thread> threads;
  static std::atomic<uint64_t> next{0};
  // Made beforehand: the actors' work is not the store's. Only the uid differs from record to record.
  Random random(7);
  const std::string pattern = MakeRecord(random, "0123456789abcdef");
  const size_t uid_at = pattern.find("0123456789abcdef");
  const Clock::time_point begin = Clock::now();
  for (int c = 0; c < clients; ++c)
    threads.emplace_back([&] {
      auto client = *ReplayClient::Connect(address);
      v1::InsertRequest request;
      for (int i = 0; i < per_request; ++i) request.add_trajectories(pattern);
      while (SecondsSince(begin) < kSeconds) {
        for (std::string& bytes : *request.mutable_trajectories())
          std::memcpy(bytes.data() + uid_at, StrFormat("%016llx", static_cast<unsigned long long>(next++)).data(), 16);
        const auto reply = client->Insert(request, Soon());
        QUERN_CHECK(reply.ok(), reply.status().message());
        inserted += reply->inserted();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return static_cast<double>(inserted) / SecondsSince(begin);
}

double Samples(Replay& replay, uint64_t watermark, uint32_t count) {
  v1::SampleRequest request;
  request.set_watermark(watermark);
  request.set_count(count);
  request.set_seed(1);
  uint64_t sampled = 0;
  const Clock::time_point begin = Clock::now();
  for (uint64_t step = 0; SecondsSince(begin) < kSeconds; ++step) {
    request.set_step(step);
    const auto reply = replay.Sample(request, Soon());
    QUERN_CHECK(reply.ok(), reply.status().message());
    sampled += static_cast<uint64_t>(reply->trajectories_size());
  }
  return static_cast<double>(sampled) / SecondsSince(begin);
}

int Main(const std::string& directory) {
  auto store = Store::Open(JoinPath(directory, "replay"));
  QUERN_CHECK(store.ok(), store.status().message());
  ReplayServer server(store->get());
  const Status started = server.Start("ipc://" + directory + "/store.sock");
  QUERN_CHECK(started.ok(), started.message());
  const std::string& address = server.address();
  std::printf("records of 16 KiB, acknowledged after sync; median of %d runs of %.0f s (lowest-highest)\n", kRuns,
              kSeconds);
  Report("insert, 1 client, 1 record a request, ipc", [&] { return Inserts(address, 1, 1); });
  Report("insert, 4 clients, 1 record a request, ipc", [&] { return Inserts(address, 4, 1); });
  Report("insert, 4 clients, 32 records a request, ipc", [&] { return Inserts(address, 4, 32); });
  auto client = *ReplayClient::Connect(address);
  const uint64_t watermark = client->Stats({}, Soon())->watermark();
  std::printf("%llu records stored\n", static_cast<unsigned long long>(watermark));
  const uint64_t warm = std::min<uint64_t>(watermark, 20000);  // 320 MB, in the page cache
  Report("sample, batches of 64 of the first 20,000 records, ipc", [&] { return Samples(*client, warm, 64); });
  Report("sample, batches of 64 of the first 20,000 records, direct", [&] { return Samples(**store, warm, 64); });
  server.Stop();
  return 0;
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) {
  char made[] = "/var/tmp/quern-bench-XXXXXX";  // a disk: /tmp may be memory
  const std::string directory = argc > 1 ? argv[1] : mkdtemp(made);
  const int code = quern::Main(directory);
  if (argc <= 1) (void)quern::RemoveTree(directory);
  return code;
}
