#pragma once

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/deadline.h"
#include "base/random.h"
#include "base/strings.h"
#include "proto/record.pb.h"
#include "tests/bench/bench_util.h"

// What bench_replay and its actors share.
namespace quern::bench {

inline constexpr char kUid[] = "0123456789abcdef";

inline Deadline Soon() { return Deadline::After(std::chrono::seconds(60)); }
inline void Check(const Status& status) { QUERN_CHECK(status.ok(), status.message()); }

// About `bytes` as sent: tokens of 9 bytes (id, mask, log-probability) each, about half compressible. The uid kUid is
// to be written over.
inline std::string MakeRecord(size_t bytes) {
  Random random(7);
  const size_t tokens = bytes > 128 ? (bytes - 64) / 9 : 4;
  v1::Trajectory t;
  t.set_uid(kUid);
  t.set_source(v1::SOURCE_GENERATED);
  t.set_generation_depth(1);
  for (size_t i = 0; i < tokens; ++i) {
    const auto id = static_cast<int32_t>(random.Below(32000));
    const float log_prob = -random.UniformFloat();
    t.mutable_token_ids()->append(reinterpret_cast<const char*>(&id), 4);
    t.mutable_log_probs()->append(reinterpret_cast<const char*>(&log_prob), 4);
    t.mutable_loss_mask()->push_back(1);
  }
  v1::Turn* turn = t.add_turns();
  turn->set_end(static_cast<uint32_t>(tokens));
  turn->set_reward(random.UniformFloat());
  t.set_episode_return(turn->reward());
  return t.SerializeAsString();
}

// Records that differ in their uids only: making them is the actors' work, not the store's.
class Records {
 public:
  Records(size_t bytes, uint64_t stream) : bytes_(MakeRecord(bytes)), at_(bytes_.find(kUid)), next_(stream << 40) {}
  const std::string& Next() {
    uid_ = StrFormat("%016llx", static_cast<unsigned long long>(MixSeed(9, next_++)));
    std::memcpy(bytes_.data() + at_, uid_.data(), 16);
    return bytes_;
  }
  const std::string& uid() const { return uid_; }

 private:
  std::string bytes_, uid_;
  size_t at_;
  uint64_t next_;
};

struct Run {
  double records = 0;             // acknowledged in time
  std::vector<double> latencies;  // ms, one a commit
};

// From `start` on, `commit` again and again; what it stored within `seconds`.
inline Run Repeat(double start, double seconds, const std::function<int()>& commit) {
  while (Seconds() < start) std::this_thread::sleep_for(std::chrono::microseconds(200));
  Run run;
  for (double begin = Seconds(); begin < start + seconds;) {
    const int records = commit();
    const double end = Seconds();
    run.latencies.push_back(1e3 * (end - begin));
    if (end <= start + seconds) run.records += records;
    begin = end;
  }
  return run;
}

struct Load {
  size_t bytes = 16384;
  int actors = 4;
  int batch = 32;
  double seconds = 2;
};

}  // namespace quern::bench
