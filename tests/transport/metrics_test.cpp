#include "transport/metrics.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <set>

#include "base/file.h"
#include "base/strings.h"
#include "transport/metric_list.h"

namespace quern {
namespace {

TEST(Metrics, CountsSetsAndObserves) {
  Metrics metrics(kRoleReplay);
  metrics.Add(kReplayCommitted, 3);
  metrics.Add(kReplayCommitted, 4);
  metrics.Add(kReplayRejected, 1, {{"reason", "a \"quoted\"\nreason"}});
  metrics.Set(kReplayRecords, 12);
  metrics.Observe(kReplayGroup, 3);
  metrics.Observe(kReplayGroup, 1e9);
  const std::string text = metrics.Text();
  for (const char* line :
       {"quern_replay_records_committed_total 7\n", "quern_replay_records 12\n",
        "quern_replay_rejected_messages_total{reason=\"a \\\"quoted\\\"\\nreason\"} 1\n",
        "quern_replay_group_commit_records_count 2\n", "quern_replay_group_commit_records_bucket{le=\"4\"} 1\n",
        "quern_replay_group_commit_records_bucket{le=\"+Inf\"} 2\n"})
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
  EXPECT_EQ(text.find("learner"), std::string::npos) << "of another role";
}

TEST(Metrics, WhatHasNoLabelsIsThereFromTheStart) {
  for (const char* role : {kRoleActor, kRoleReplay, kRoleLearner, kRoleCoordinator}) {
    Metrics metrics(role);
    const std::string text = metrics.Text();
    for (const Metric* metric : AllMetrics()) {
      const bool mine = *metric->role == '\0' || role == std::string(metric->role);
      const bool shown = text.find(StrCat("# TYPE quern_", metric->name, " ")) != std::string::npos;
      EXPECT_EQ(shown, mine && (*metric->labels == '\0' || *metric->values != '\0')) << role << " " << metric->name;
    }
    EXPECT_NE(text.find("\nprocess_cpu_seconds_total "), std::string::npos);
    const size_t memory = text.find("\nprocess_resident_memory_bytes ");
    ASSERT_NE(memory, std::string::npos);
    EXPECT_GT(std::strtod(text.c_str() + memory + 31, nullptr), 1e6);
  }
}

TEST(Metrics, EveryOneIsDocumentedAndNothingElse) {
  const std::string root = getenv("QUERN_SOURCE_DIR");
  const std::string text = *ReadFile(JoinPath(root, "docs/metrics.md"));
  std::set<std::string> known;
  for (const Metric* metric : AllMetrics()) {
    const std::string name = StrCat("quern_", metric->name);
    EXPECT_TRUE(known.insert(name).second) << name << " is there twice";
    EXPECT_NE(text.find("`" + name + "`"), std::string::npos) << name << " is not in docs/metrics.md";
    const std::string_view end(metric->name);
    EXPECT_EQ(end.ends_with("_total"), metric->kind == Metric::kCounter) << name;
    EXPECT_TRUE(metric->kind != Metric::kSeconds || end.ends_with("_seconds")) << name;
  }
  for (const char* file : {"docs/metrics.md", "deploy/prometheus/alerts.yml"}) {
    const std::string named = *ReadFile(JoinPath(root, file));
    for (size_t at = named.find("quern_"); at != std::string::npos; at = named.find("quern_", at + 1)) {
      const size_t stop = named.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_", at);
      std::string name = named.substr(at, stop - at);
      for (const char* suffix : {"_bucket", "_count", "_sum"})
        if (!known.contains(name) && name.ends_with(suffix)) name.resize(name.size() - strlen(suffix));
      EXPECT_TRUE(known.contains(name)) << file << " names " << name;
    }
  }
}

}  // namespace
}  // namespace quern
