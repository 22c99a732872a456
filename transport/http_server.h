#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace quern {

struct HttpRequest {
  std::string method;  // "GET", "POST"
  std::string path;    // as sent, without the query
  std::string query;   // what follows '?', not decoded
  std::string content_type;
  std::string body;
};

// The answer to one request: Send, or Begin, any number of Write, and End. From any thread and at any time; kept as
// long as the answer takes, also beyond the server's life. One that is let go of without an answer says 500.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  virtual void Send(int status, std::string_view content_type, std::string body) = 0;
  // An answer of unknown length, which goes out as it is written. A client that reads too slowly is cut off.
  virtual void Begin(int status, std::string_view content_type) = 0;
  virtual void Write(std::string piece) = 0;
  virtual void End() = 0;
  // The client has gone (or the server stops): what is still written reaches nobody.
  virtual bool closed() const = 0;
};

// Called on the server's thread, which must not be held up: long work answers later, from elsewhere.
using HttpHandler = std::function<void(HttpRequest request, std::shared_ptr<HttpReply> reply)>;

struct HttpServerOptions {
  std::string host = "127.0.0.1";  // an IP address
  int port = 0;                    // 0: a free one
  // "Authorization: Bearer TOKEN" is asked of every request but GET of `open_paths`. Needed where `host` is no loopback
  // address; without one only requests whose Host is this machine are answered (DNS rebinding).
  std::string token = "";
  std::vector<std::string> open_paths = {"/healthz"};
  int64_t max_body_bytes = int64_t{4} << 20;
  int max_connections = 1024;
  // Told of what the server refuses itself, on its thread: 400, 401, 403, 413, 431; 408: a connection that brought no
  // request, or one that did not come to its end; 503: one connection too many.
  std::function<void(int code)> refused = nullptr;
  int idle_timeout_s = 60;  // for a request to arrive, and for a client to take a piece of the answer
};

// HTTP/1.1 with keep-alive, one thread, no TLS. What it refuses itself (a bad request, 401, 413, 431, too many
// connections) it answers in the form of OpenAI's errors: {"error": {"message", "type", "code"}}.
class HttpServer {
 public:
  static Result<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options, HttpHandler handler);
  virtual ~HttpServer() = default;  // closes every connection; the handler is not called afterwards
  virtual int port() const = 0;
};

// The first line of `path`, without white space around it: a token that is not on a command line. It must have at
// least 16 characters.
Result<std::string> ReadTokenFile(const std::string& path);

// {"error": {"message": .., "type": .., "code": status}}
std::string HttpErrorJson(int status, std::string_view message);

}  // namespace quern
