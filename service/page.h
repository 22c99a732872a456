#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "proto/coordinator.pb.h"
#include "replay/replay.h"
#include "service/plan.h"
#include "service/result.h"
#include "service/run_directory.h"
#include "service/run_history.h"
#include "transport/http_server.h"

namespace quern {

// service/page/index.html, one file that asks for nothing outside.
std::string_view PageHtml();

// The page of a run: GET / is the HTML, GET /api/... the JSON that it shows (docs/cli.md), from the run's files and its
// store, so that it is the same for a run that goes on and one that has ended. Requests are answered by one thread of
// its own, a few at a time; they read only.
class RunPage {
 public:
  // `store` may be null: there is none, or it cannot be read.
  RunPage(const Run& run, std::unique_ptr<Replay> store);
  ~RunPage();

  // What a running coordinator says, over what the files say; null: the job is not running. Waits until the previous
  // one is not called any more.
  void ShowLive(std::function<v1::StatusReply()> status);
  void Handle(HttpRequest request, std::shared_ptr<HttpReply> reply);

 private:
  struct Waiting {
    HttpRequest request;
    std::shared_ptr<HttpReply> reply;
  };
  using Parameters = std::map<std::string, std::string>;

  void Work();
  Result<std::string> Answer(const std::string& path, const Parameters& parameters);
  std::string RunJson();
  std::string CurvesJson(const Parameters& parameters);
  std::string ReturnsJson();
  Result<std::string> ReplayJson();
  Result<std::string> SamplesJson(const Parameters& parameters);
  std::string EventsJson();
  bool AllDone(const std::string& tag, bool* any_begun);

  const Run run_;
  const Plan plan_;
  const std::unique_ptr<Replay> store_;
  // The worker's own.
  RunHistory history_;
  std::map<std::string, ResultRow> final_rows_;  // of stages that are done, by tag

  std::mutex live_mutex_;
  std::function<v1::StatusReply()> live_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Waiting> waiting_;
  bool stopping_ = false;
  std::thread worker_;
};

}  // namespace quern
