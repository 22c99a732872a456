#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <thread>

#include "base/strings.h"
#include "replay/store.h"
#include "service/command.h"
#include "service/page.h"
#include "service/role_http.h"
#include "service/roles.h"
#include "service/supervised.h"
#include "transport/metric_list.h"

namespace quern {

namespace {

struct UiOptions {
  std::string run;
  std::string host = "127.0.0.1";
  int port = 0;
  std::string token_file;
};

// Whether a run's processes are up: then its coordinator has the page.
bool GoesOn(const Run& run) { return !RunLock::Take(run, Duration::zero()).ok(); }

Result<int> ShowRun(const UiOptions& options) {
  const Result<Run> run = LoadRun(options.run);
  if (!run.ok()) {
    if (run.status().code() != StatusCode::kNotFound) return run.status();
    std::fprintf(stderr, "quern: %s\n", run.status().message().c_str());
    return kExitNotFound;
  }
  if (GoesOn(*run)) {
    const std::string url = RoleUrl(*run, kCoordinatorRole, 0);
    if (url.empty()) return Unavailable(options.run + ": the run is starting; its page comes with its coordinator");
    std::printf("the run is going on; its page: %s\n", url.c_str());
    return kExitOk;
  }
  std::unique_ptr<Replay> replay;
  StoreOptions reading;
  reading.read_only = true;
  Result<std::unique_ptr<Store>> store = Store::Open(run->Path("replay"), reading);
  if (store.ok())
    replay = std::move(*store);
  else
    std::fprintf(stderr, "quern: the samples cannot be shown: %s\n", store.status().message().c_str());
  RunPage page(*run, std::move(replay));
  Metrics metrics("ui");
  metrics.Set(kBuildInfo, 1, {{"version", QUERN_VERSION}, {"role", "ui"}, {"index", "0"}, {"run", run->name()}});
  metrics.Set(kUpSince, UnixSeconds());
  HttpServerOptions server_options;
  server_options.refused = [&metrics](int code) { metrics.Add(kHttpRefused, 1, {{"code", std::to_string(code)}}); };
  server_options.host = options.host;
  server_options.port = options.port;
  server_options.max_body_bytes = 1 << 16;
  server_options.open_paths.push_back("/");
  if (!options.token_file.empty()) {
    QUERN_ASSIGN_OR_RETURN(server_options.token, ReadTokenFile(options.token_file));
  }
  QUERN_ASSIGN_OR_RETURN(const auto server, HttpServer::Start(server_options, [&](HttpRequest request, auto reply) {
                           if (request.method != "GET" && request.method != "HEAD")
                             return reply->Send(405, "application/json", HttpErrorJson(405, "GET and HEAD only"));
                           if (request.path == "/healthz") return reply->Send(200, "text/plain", "ok\n");
                           if (request.path == "/metrics") return reply->Send(200, kPrometheusText, metrics.Text());
                           page.Handle(std::move(request), std::move(reply));
                         }));
  const std::atomic<int>& interrupts = InstallSupervisorSignals();
  const std::string host = options.host.find(':') == std::string::npos ? options.host : "[" + options.host + "]";
  std::printf("http://%s:%d/\n", host.c_str(), server->port());
  std::fflush(stdout);
  std::fprintf(stderr, "Ctrl-C ends it\n");
  while (interrupts.load() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  return kExitOk;
}

}  // namespace

void AddUiCommand(CommandSet& commands) {
  auto options = std::make_shared<UiOptions>();
  CLI::App* command = commands.app().add_subcommand("ui", "the page of a run that has ended, until Ctrl-C");
  command->add_option("--run", options->run, "run directory")->required();
  command->add_option("--port", options->port, "0: a free one")->check(CLI::Range(0, 65535));
  command->add_option("--host", options->host, "IP address; another than loopback needs --token-file");
  command->add_option("--token-file", options->token_file, "its first line is asked of every request");
  commands.SetBody(command, [options] { return ShowRun(*options); });
}

}  // namespace quern
