#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "base/status.h"
#include "service/run_directory.h"
#include "transport/http_server.h"
#include "transport/metrics.h"

namespace quern {

// The HTTP port of one role: /metrics, /healthz, /readyz, and what `more` answers. Read-only: GET and HEAD. Its address
// is in RUN/http/ROLE-INDEX.json while it lives, a file for Prometheus' service discovery.
class RoleHttp {
 public:
  struct Options {
    std::string role;
    uint32_t index = 0;
    int port = 0;                              // 0: a free one
    std::vector<std::string> open_paths = {};  // beside /healthz: answered without a token
    HttpHandler more = nullptr;
  };
  // Host and token by job.network.
  static Result<std::unique_ptr<RoleHttp>> Start(const Run& run, Options options);
  ~RoleHttp();

  Metrics& metrics() { return metrics_; }
  // Why the role cannot do its work at present; empty: it can. At first it cannot.
  void SetReady(const std::string& why_not = {});
  std::string url() const;

 private:
  RoleHttp(const Run& run, Options options);
  void Handle(HttpRequest request, std::shared_ptr<HttpReply> reply);

  Options options_;
  std::string host_;
  std::string file_;
  Metrics metrics_;
  std::mutex mutex_;
  std::string why_not_ready_ = "starting";
  std::unique_ptr<HttpServer> server_;
};

// "http://127.0.0.1:4711/" of a role, as its file has it; empty: there is none.
std::string RoleUrl(const Run& run, const std::string& role, uint32_t index);

}  // namespace quern
