#pragma once

#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include "replay/replay.h"

namespace quern {

// A store in memory with what the coordinator asks of one: inserts and tag statistics.
class FakeReplay : public Replay {
 public:
  void Add(const std::string& uid, double episode_return, bool success, const std::vector<std::string>& tags) {
    v1::Trajectory trajectory;
    trajectory.set_uid(uid);
    trajectory.set_episode_return(episode_return);
    trajectory.set_success(success);
    for (const std::string& tag : tags) trajectory.add_tags(tag);
    std::lock_guard lock(mutex_);
    records_.push_back(trajectory);
  }

  Result<v1::InsertReply> Insert(const v1::InsertRequest& request, Deadline) override {
    std::lock_guard lock(mutex_);
    for (const std::string& bytes : request.trajectories()) {
      v1::Trajectory trajectory;
      if (!trajectory.ParseFromString(bytes)) return InvalidArgument("trajectory does not parse");
      records_.push_back(trajectory);
    }
    v1::InsertReply reply;
    reply.set_inserted(static_cast<uint64_t>(request.trajectories_size()));
    reply.set_watermark(records_.size());
    return reply;
  }
  Result<v1::OpenWriterReply> OpenWriter(const v1::OpenWriterRequest&, Deadline) override {
    return Unimplemented("OpenWriter");
  }
  Result<v1::ContainsReply> Contains(const v1::ContainsRequest&, Deadline) override {
    return Unimplemented("Contains");
  }
  Result<v1::SampleReply> Sample(const v1::SampleRequest&, Deadline) override { return Unimplemented("Sample"); }
  Result<v1::QueryReply> Query(const v1::QueryRequest&, Deadline) override { return Unimplemented("Query"); }
  Result<v1::StatsReply> Stats(const v1::StatsRequest& request, Deadline) override {
    std::lock_guard lock(mutex_);
    if (!failure.ok()) return failure;
    v1::StatsReply reply;
    double sum = 0, squares = 0, successes = 0;
    for (const v1::Trajectory& record : records_) {
      const auto has = [&](const std::string& tag) {
        return std::find(record.tags().begin(), record.tags().end(), tag) != record.tags().end();
      };
      const v1::Filter& filter = request.filter();
      if (!std::all_of(filter.tags().begin(), filter.tags().end(), has)) continue;
      if (std::any_of(filter.without_tags().begin(), filter.without_tags().end(), has)) continue;
      reply.set_records(reply.records() + 1);
      sum += record.episode_return();
      squares += record.episode_return() * record.episode_return();
      successes += record.success() ? 1 : 0;
    }
    const double n = std::max<double>(1, static_cast<double>(reply.records()));
    reply.set_mean_return(sum / n);
    reply.set_return_variance(squares / n - sum / n * sum / n);
    reply.set_success_rate(successes / n);
    reply.set_watermark(records_.size());
    return reply;
  }

  Status failure;

 private:
  std::mutex mutex_;
  std::vector<v1::Trajectory> records_;
};

}  // namespace quern
