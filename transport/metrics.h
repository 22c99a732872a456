#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>

namespace quern {

// A family of numbers that a process shows to Prometheus. All that exist are in metric_list.h.
struct Metric {
  enum Kind {
    kCounter,
    kGauge,
    kSeconds,
    kSize,
    kReturn,
    kVersions
  };                 // the last four: histograms with their own buckets
  const char* role;  // the role that has it; "": every one
  Kind kind;
  const char* name;    // without the prefix "quern_"
  const char* labels;  // names with commas between; "": none, and then it is there from the start, at 0
  const char* help;
  // Of one label: values that are there from the start, at 0, with commas between. An increase from nothing to 1 is
  // none to Prometheus.
  const char* values = "";
};

using MetricLabels = std::map<std::string, std::string>;

// The numbers of one role of a run. Thread-safe.
class Metrics {
 public:
  explicit Metrics(const std::string& role);
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;
  ~Metrics();

  void Add(const Metric& counter, double amount = 1, const MetricLabels& labels = {});
  void Set(const Metric& gauge, double value, const MetricLabels& labels = {});
  void Observe(const Metric& histogram, double value, const MetricLabels& labels = {});
  // What is exposed, in Prometheus' text format, with process_* of this process.
  std::string Text();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The content type of Metrics::Text.
inline constexpr char kPrometheusText[] = "text/plain; version=0.0.4; charset=utf-8";

// Every metric there is.
std::span<const Metric* const> AllMetrics();

// For options that may be null: the given one, or one of its own that nobody reads.
class MetricsOrOwn {
 public:
  MetricsOrOwn(Metrics* given, const std::string& role)
      : own_(given == nullptr ? std::make_unique<Metrics>(role) : nullptr), used_(given ? given : own_.get()) {}
  Metrics* operator->() const { return used_; }
  Metrics* get() const { return used_; }

 private:
  std::unique_ptr<Metrics> own_;
  Metrics* used_;
};

}  // namespace quern
