#include "service/role_http.h"

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/deadline.h"
#include "base/file.h"
#include "base/strings.h"
#include "transport/metric_list.h"

namespace quern {

namespace {

std::string FileOf(const Run& run, const std::string& role, uint32_t index) {
  return JoinPath(run.Path("http"), StrCat(role, "-", index, ".json"));
}

// What others may call this machine: an address that stands for all of its addresses is none to go to.
std::string Reachable(const std::string& host) {
  if (host != "0.0.0.0" && host != "::") return host;
  char name[256] = "";
  return gethostname(name, sizeof(name) - 1) == 0 && name[0] != '\0' ? name : host;
}

std::string HostAndPort(const std::string& host, int port) {
  return host.find(':') == std::string::npos ? StrCat(host, ":", port) : StrCat("[", host, "]:", port);
}

}  // namespace

RoleHttp::RoleHttp(const Run& run, Options options)
    : options_(std::move(options)),
      host_(Reachable(run.job.network.http_host)),
      file_(FileOf(run, options_.role, options_.index)),
      metrics_(options_.role) {
  metrics_.Set(kBuildInfo, 1,
               {{"version", QUERN_VERSION},
                {"role", options_.role},
                {"index", std::to_string(options_.index)},
                {"run", run.name()}});
  metrics_.Set(kUpSince, UnixSeconds());
}

Result<std::unique_ptr<RoleHttp>> RoleHttp::Start(const Run& run, Options options) {
  std::unique_ptr<RoleHttp> http(new RoleHttp(run, std::move(options)));
  HttpServerOptions server;
  server.host = run.job.network.http_host;
  server.port = http->options_.port;
  server.max_body_bytes = 1 << 16;
  server.max_connections = 256;
  if (!run.job.network.http_token_file.empty()) {
    QUERN_ASSIGN_OR_RETURN(server.token, ReadTokenFile(run.job.network.http_token_file));
  }
  server.open_paths.insert(server.open_paths.end(), http->options_.open_paths.begin(), http->options_.open_paths.end());
  RoleHttp* const self = http.get();
  server.refused = [self](int code) { self->metrics_.Add(kHttpRefused, 1, {{"code", std::to_string(code)}}); };
  QUERN_ASSIGN_OR_RETURN(http->server_, HttpServer::Start(server, [self](HttpRequest request, auto reply) {
                           self->Handle(std::move(request), std::move(reply));
                         }));
  const nlohmann::ordered_json targets = {
      {{"targets", {HostAndPort(http->host_, http->server_->port())}},
       {"labels",
        {{"run", run.name()}, {"role", http->options_.role}, {"index", std::to_string(http->options_.index)}}}}};
  QUERN_RETURN_IF_ERROR(MakeDirectories(run.Path("http")));
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(http->file_, targets.dump(2) + "\n"));
  return http;
}

RoleHttp::~RoleHttp() {
  if (server_ == nullptr) return;
  unlink(file_.c_str());
  server_.reset();
}

void RoleHttp::SetReady(const std::string& why_not) {
  std::lock_guard lock(mutex_);
  why_not_ready_ = why_not;
}

std::string RoleHttp::url() const { return StrCat("http://", HostAndPort(host_, server_->port()), "/"); }

void RoleHttp::Handle(HttpRequest request, std::shared_ptr<HttpReply> reply) {
  if (request.method != "GET" && request.method != "HEAD")
    return reply->Send(405, "application/json", HttpErrorJson(405, "nothing can be changed here: GET and HEAD only"));
  if (request.path == "/metrics") return reply->Send(200, kPrometheusText, metrics_.Text());
  if (request.path == "/healthz") return reply->Send(200, "text/plain", "ok\n");
  if (request.path == "/readyz") {
    std::lock_guard lock(mutex_);
    if (why_not_ready_.empty()) return reply->Send(200, "text/plain", "ready\n");
    return reply->Send(503, "text/plain", "not ready: " + why_not_ready_ + "\n");
  }
  if (options_.more != nullptr) return options_.more(std::move(request), std::move(reply));
  reply->Send(404, "application/json", HttpErrorJson(404, "there are /metrics, /healthz and /readyz"));
}

std::string RoleUrl(const Run& run, const std::string& role, uint32_t index) {
  const Result<std::string> text = ReadFile(FileOf(run, role, index));
  if (!text.ok()) return {};
  const nlohmann::json json = nlohmann::json::parse(*text, nullptr, false);
  try {
    return StrCat("http://", json.at(0).at("targets").at(0).get<std::string>(), "/");
  } catch (const nlohmann::json::exception&) {
    return {};
  }
}

}  // namespace quern
