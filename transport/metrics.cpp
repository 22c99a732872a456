#include "transport/metrics.h"

#include <dirent.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <sstream>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "transport/metric_list.h"

namespace quern {

namespace {

constexpr const Metric* kAll[] = {&kBuildInfo,
                                  &kUpSince,
                                  &kActorEpisodes,
                                  &kActorTurns,
                                  &kActorGenerated,
                                  &kActorPrompt,
                                  &kActorStep,
                                  &kActorReward,
                                  &kActorResponse,
                                  &kActorVersion,
                                  &kActorUnacked,
                                  &kActorSpool,
                                  &kActorResent,
                                  &kActorFailures,
                                  &kActorWeights,
                                  &kReplayCommitted,
                                  &kReplayBytes,
                                  &kReplayDuplicates,
                                  &kReplayGaps,
                                  &kReplayRejected,
                                  &kReplayCommit,
                                  &kReplayGroup,
                                  &kReplaySample,
                                  &kReplayRecords,
                                  &kReplayOldest,
                                  &kReplayStalled,
                                  &kReplayLevel0,
                                  &kReplayWal,
                                  &kReplayDisk,
                                  &kReplayCorruption,
                                  &kReplayLag,
                                  &kReplayBackup,
                                  &kReplayPruned,
                                  &kReplayOpen,
                                  &kLearnerSteps,
                                  &kLearnerTokens,
                                  &kLearnerPhase,
                                  &kLearnerLoss,
                                  &kLearnerEntropy,
                                  &kLearnerGradient,
                                  &kLearnerRate,
                                  &kLearnerShare,
                                  &kLearnerHeldout,
                                  &kLearnerVersion,
                                  &kLearnerFailures,
                                  &kLearnerCheckpoint,
                                  &kLearnerCheckpointTime,
                                  &kLearnerTraining,
                                  &kLearnerStrangers,
                                  &kLearnerSaturated,
                                  &kLearnerFlushed,
                                  &kLearnerCorrelation,
                                  &kLearnerLinearAmax,
                                  &kMembers,
                                  &kHeartbeatAge,
                                  &kRestarts,
                                  &kJobState,
                                  &kStageProgress,
                                  &kTaskFailures,
                                  &kQuarantined,
                                  &kSinceProgress,
                                  &kConnections,
                                  &kHandshakes,
                                  &kReplayConnections,
                                  &kReplayHandshakes,
                                  &kRpcMalformed,
                                  &kWeightConnections,
                                  &kWeightRefused,
                                  &kWeightSent,
                                  &kLearnerStaleness,
                                  &kLearnerKl,
                                  &kLearnerRatio,
                                  &kLearnerRolloutDiff,
                                  &kLearnerRolloutChecked,
                                  &kActorEpisodeSeconds,
                                  &kActorEnvSeconds,
                                  &kServerRequests,
                                  &kServerFirst,
                                  &kServerInter,
                                  &kServerRunning,
                                  &kServerWaiting,
                                  &kServerTokens,
                                  &kHttpRefused};

std::vector<double> Buckets(Metric::Kind kind) {
  std::vector<double> buckets;
  switch (kind) {
    case Metric::kSeconds:  // 0.1 ms to 52 s
      for (double b = 1e-4; b < 100; b *= 2) buckets.push_back(b);
      break;
    case Metric::kSize:
      for (double b = 1; b <= 65536; b *= 4) buckets.insert(buckets.end(), {b, 2 * b});
      break;
    case Metric::kVersions: buckets = {0, 1, 2, 3, 4, 6, 8, 12, 16, 32}; break;
    case Metric::kReturn:
      buckets = {-100, -50, -20, -10, -5, -4, -3, -2, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 2, 5, 10, 20, 50, 100};
      break;
    default: break;
  }
  return buckets;
}

// What is there before anything has happened; empty: nothing.
std::vector<MetricLabels> FirstLabels(const Metric& metric) {
  if (*metric.labels == '\0') return {{}};
  std::vector<MetricLabels> first;
  std::istringstream values(metric.values);
  for (std::string value; std::getline(values, value, ',');) first.push_back({{metric.labels, value}});
  return first;
}

// Of this process, from /proc; 0 where that is not there.
struct ProcessNumbers {
  double resident_bytes = 0, cpu_seconds = 0, open_fds = 0;
};
ProcessNumbers ReadProcess() {
  ProcessNumbers numbers;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    unsigned long size = 0, resident = 0;
    if (std::fscanf(file, "%lu %lu", &size, &resident) == 2)
      numbers.resident_bytes = static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE));
    std::fclose(file);
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  for (const timeval& time : {usage.ru_utime, usage.ru_stime})
    numbers.cpu_seconds += static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  if (DIR* folder = opendir("/proc/self/fd")) {
    while (const dirent* entry = readdir(folder)) numbers.open_fds += entry->d_name[0] != '.' ? 1 : 0;
    closedir(folder);
    --numbers.open_fds;  // the folder itself
  }
  return numbers;
}

}  // namespace

struct Metrics::Impl {
  prometheus::Registry registry;
  std::unordered_map<const Metric*, prometheus::Family<prometheus::Counter>*> counters;
  std::unordered_map<const Metric*, prometheus::Family<prometheus::Gauge>*> gauges;
  std::unordered_map<const Metric*, prometheus::Family<prometheus::Histogram>*> histograms;
  std::mutex process_mutex;
  prometheus::Counter* cpu = nullptr;
  prometheus::Gauge* resident = nullptr;
  prometheus::Gauge* fds = nullptr;

  template <typename Builder>
  auto* Register(Builder builder, const Metric& metric) {
    return &builder.Name(std::string("quern_") + metric.name).Help(metric.help).Register(registry);
  }
};

Metrics::Metrics(const std::string& role) : impl_(std::make_unique<Impl>()) {
  Impl& impl = *impl_;
  for (const Metric* metric : kAll) {
    if (*metric->role != '\0' && role != metric->role) continue;
    const std::vector<MetricLabels> first = FirstLabels(*metric);
    switch (metric->kind) {
      case Metric::kCounter:
        impl.counters[metric] = impl.Register(prometheus::BuildCounter(), *metric);
        for (const MetricLabels& labels : first) impl.counters[metric]->Add(labels);
        break;
      case Metric::kGauge:
        impl.gauges[metric] = impl.Register(prometheus::BuildGauge(), *metric);
        for (const MetricLabels& labels : first) impl.gauges[metric]->Add(labels);
        break;
      default:
        impl.histograms[metric] = impl.Register(prometheus::BuildHistogram(), *metric);
        for (const MetricLabels& labels : first) impl.histograms[metric]->Add(labels, Buckets(metric->kind));
    }
  }
  impl.cpu = &prometheus::BuildCounter()
                  .Name("process_cpu_seconds_total")
                  .Help("user and system time of the process")
                  .Register(impl.registry)
                  .Add({});
  impl.resident = &prometheus::BuildGauge()
                       .Name("process_resident_memory_bytes")
                       .Help("memory of the process")
                       .Register(impl.registry)
                       .Add({});
  impl.fds = &prometheus::BuildGauge().Name("process_open_fds").Help("open files").Register(impl.registry).Add({});
}

Metrics::~Metrics() = default;

void Metrics::Add(const Metric& counter, double amount, const MetricLabels& labels) {
  const auto family = impl_->counters.find(&counter);
  QUERN_CHECK(family != impl_->counters.end());
  family->second->Add(labels).Increment(amount);
}

void Metrics::Set(const Metric& gauge, double value, const MetricLabels& labels) {
  const auto family = impl_->gauges.find(&gauge);
  QUERN_CHECK(family != impl_->gauges.end());
  family->second->Add(labels).Set(value);
}

void Metrics::Observe(const Metric& histogram, double value, const MetricLabels& labels) {
  const auto family = impl_->histograms.find(&histogram);
  QUERN_CHECK(family != impl_->histograms.end());
  family->second->Add(labels, Buckets(histogram.kind)).Observe(value);
}

std::string Metrics::Text() {
  {
    std::lock_guard lock(impl_->process_mutex);
    const ProcessNumbers now = ReadProcess();
    impl_->cpu->Increment(std::max(0.0, now.cpu_seconds - impl_->cpu->Value()));
    impl_->resident->Set(now.resident_bytes);
    impl_->fds->Set(now.open_fds);
  }
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

std::span<const Metric* const> AllMetrics() { return kAll; }

}  // namespace quern
