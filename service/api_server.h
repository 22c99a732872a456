#pragma once

#include <functional>
#include <memory>
#include <string>

#include "actors/engine.h"
#include "service/served_policy.h"
#include "transport/http_server.h"

namespace quern {

struct ApiServerOptions {
  HttpServerOptions http;
  std::string model_name;
  int64_t max_choices = 256;  // under way at a time; a request beyond them is answered 503
  int timeout_s = 600;        // an answer ends after it, with what there is
  EngineOptions engine;
};

// OpenAI's completions and chat API over one engine: POST /v1/completions and /v1/chat/completions, GET /v1/models and
// /healthz. Three threads: the HTTP server's, one that reads requests (templates, tokens), and the engine's. A client
// that has gone takes its generations with it before the next step.
class ApiServer {
 public:
  // `ops` must outlive the server.
  static Result<std::unique_ptr<ApiServer>> Start(Ops& ops, ServedPolicy served, const ApiServerOptions& options);
  virtual ~ApiServer() = default;  // answers what is under way with 503
  virtual int port() const = 0;

  // Other weights: the engine's thread calls `load` between two steps and goes on with what it gives, the newest where
  // several wait. Answers under way go on, too, and name every version that their tokens came from. What fails to load,
  // or has another vocabulary or fewer positions, is logged and changes nothing. Thread-safe.
  virtual void Replace(std::function<Result<ServedPolicy>()> load) = 0;

  struct Counters {
    int64_t choices = 0;  // under way
    int64_t used_pages = 0;
    int64_t generated_tokens = 0;
    int64_t cancelled = 0;  // requests whose client had gone
    int64_t replaced = 0;   // policies
  };
  virtual Counters counters() const = 0;  // as of the last step; thread-safe
};

}  // namespace quern
