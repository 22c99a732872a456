#include "service/join.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "model/hf/content_hash.h"
#include "service/roles.h"
#include "transport/address.h"
#include "transport/curve_keys.h"
#include "transport/join_token.h"
#include "transport/weight_fetch.h"

namespace quern {

namespace {

constexpr auto kHelloDeadline = std::chrono::seconds(30);
constexpr auto kTicketDeadline = std::chrono::seconds(10);
constexpr size_t kVersionsKept = 16;

Status WriteSecret(const std::string& path, const std::string& text) {
  const std::string temporary = StrCat(path, ".tmp-", getpid());
  unlink(temporary.c_str());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return FromErrno(errno, temporary);
  const bool written = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  close(fd);
  if (!written) return ResourceExhausted(temporary + ": cannot be written");
  return RenamePath(temporary, path);
}

std::string HostOf(const std::string& address) {
  const std::string rest = address.substr(6);
  std::string host = rest.substr(0, rest.rfind(':'));
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  return host;
}

// The oldest versions go. One that another actor still plays stays mapped there.
void Prune(const std::string& folder) {
  std::vector<std::pair<std::filesystem::file_time_type, std::string>> versions;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.is_directory(error) && entry.path().extension() != ".part")
      versions.emplace_back(entry.last_write_time(error), entry.path());
  }
  if (versions.size() <= kVersionsKept) return;
  std::sort(versions.begin(), versions.end());
  versions.resize(versions.size() - kVersionsKept);
  for (const auto& [time, path] : versions) {
    if (std::filesystem::path(path).filename().string().starts_with("base-")) continue;
    if (const Status removed = RemoveTree(path); !removed.ok()) LogWarning(removed.message());
    unlink((path + ".lock").c_str());
  }
}

}  // namespace

Status WriteJoinToken(const Run& run) {
  QUERN_ASSIGN_OR_RETURN(const std::string coordinator, LoadPublicKey(run.Path("keys"), kCoordinatorRole));
  QUERN_ASSIGN_OR_RETURN(const std::string replay, LoadPublicKey(run.Path("keys"), kReplayRole));
  QUERN_ASSIGN_OR_RETURN(const CurveKeys actor, LoadKeys(run.Path("keys"), kActorRole));
  QUERN_ASSIGN_OR_RETURN(const std::string text, FormatJoinToken({.coordinator_address = run.coordinator_address,
                                                                  .coordinator_key = coordinator,
                                                                  .replay_key = replay,
                                                                  .actor = actor}));
  return WriteSecret(run.Path("keys/join.token"), text + "\n");
}

Result<Run> JoinRun(const std::string& token_or_file, const std::string& directory, uint32_t index,
                    const std::atomic<bool>& stop) {
  std::string text = token_or_file;
  if (!text.starts_with(kJoinTokenPrefix)) {
    QUERN_ASSIGN_OR_RETURN(text, ReadFile(token_or_file));
  }
  QUERN_ASSIGN_OR_RETURN(const JoinToken token, ParseJoinToken(text));
  RpcClientOptions client;
  client.keys = token.actor;
  client.server_key = token.coordinator_key;
  QUERN_ASSIGN_OR_RETURN(const auto coordinator, RpcClient::Connect(token.coordinator_address, client));
  v1::HelloRequest hello;
  hello.set_role(kActorRole);
  hello.set_index(index);
  hello.set_pid(getpid());
  Result<v1::HelloReply> said = Unavailable("asked to leave");
  for (const Deadline deadline = Deadline::After(kHelloDeadline); !stop.load();) {
    said = coordinator->Call<v1::HelloReply>("coordinator.Hello", hello, Deadline::After(std::chrono::seconds(2)));
    if (said.ok() || said.status().code() != StatusCode::kDeadlineExceeded || deadline.Expired()) break;
  }
  QUERN_RETURN_IF_ERROR(said.status());

  Run run;
  run.joined = true;
  const std::string name = std::filesystem::path(said->run_directory()).filename();
  if (name.empty() || name == "." || name == "..") return DataLoss("the coordinator's run has no name");
  QUERN_RETURN_IF_ERROR(MakeDirectories(directory));
  std::error_code error;
  run.directory = JoinPath(std::filesystem::canonical(directory, error), name);
  if (error) return FromErrno(error.value(), directory);
  // The files that it names are looked up as on the coordinator's host.
  QUERN_ASSIGN_OR_RETURN(run.job, ParseJob(said->job_json(), "the coordinator's job", "/", {}));
  run.job.network.http_host = "127.0.0.1";
  run.job.network.http_token_file.clear();
  run.coordinator_address = token.coordinator_address;
  run.replay_address = said->replay_address();
  QUERN_RETURN_IF_ERROR(MakeDirectories(run.Path("logs")));
  const std::string keys = run.Path("keys");
  if (mkdir(keys.c_str(), 0700) != 0 && errno != EEXIST) return FromErrno(errno, keys);
  QUERN_RETURN_IF_ERROR(
      WriteSecret(JoinPath(keys, "actor.secret"), token.actor.public_key + "\n" + token.actor.secret_key + "\n"));
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(keys, "coordinator.public"), token.coordinator_key + "\n"));
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(keys, "replay-server.public"), token.replay_key + "\n"));

  const auto alive = [&]() -> Status {
    if (stop.load()) return Cancelled("asked to leave");
    v1::HeartbeatRequest heartbeat;
    heartbeat.set_role(kActorRole);
    heartbeat.set_index(index);
    heartbeat.set_activity("fetching the model");
    (void)coordinator->Call<v1::HeartbeatReply>("coordinator.Heartbeat", heartbeat,
                                                Deadline::After(std::chrono::seconds(2)));
    return {};
  };
  QUERN_ASSIGN_OR_RETURN(run.model.directory, FetchVersion(run, *coordinator, said->base_model(), alive));
  run.model.content_hash = said->base_model().content_hash();
  LogInfo(StrCat("joined ", name, " at ", run.coordinator_address, " as actor ", index));
  return run;
}

Result<std::string> FetchVersion(const Run& run, RpcClient& coordinator, const v1::WeightVersion& version,
                                 const std::function<Status()>& alive) {
  const std::string& hash = version.content_hash();
  // Both become part of a path.
  const auto plain = [](const std::string& text) {
    return !text.empty() && text[0] != '.' && text.find('/') == std::string::npos && text.size() < 200;
  };
  if (!plain(hash) || !plain(version.name())) return DataLoss("a weight version without a name or a hash");
  WeightFetchOptions fetch;
  fetch.host = HostOf(run.coordinator_address);
  fetch.directory = JoinPath(run.Path("weights"), StrCat(version.name(), "-", version.version(), "-", hash));
  fetch.alive = alive;
  fetch.verify = [&hash](const std::string& where) -> Status {
    QUERN_ASSIGN_OR_RETURN(const std::string there, DirectoryContentHash(where));
    return there == hash ? Status() : DataLoss(StrCat(where, ": content hash ", there, ", published as ", hash));
  };
  fetch.ticket = [&] {
    v1::OpenWeightsRequest request;
    request.set_name(version.name());
    request.set_version(version.version());
    request.set_content_hash(hash);
    return coordinator.Call<v1::OpenWeightsReply>("coordinator.OpenWeights", request, Deadline::After(kTicketDeadline));
  };
  WeightFetchCounters counters;
  const auto begin = Clock::now();
  QUERN_RETURN_IF_ERROR(FetchWeights(fetch, &counters));
  if (counters.received_bytes > 0) {
    LogInfo(StrFormat("fetched %s version %llu, %s in %.0f ms", version.name().c_str(),
                      static_cast<unsigned long long>(version.version()),
                      HumanBytes(static_cast<double>(counters.received_bytes)).c_str(), 1e3 * SecondsSince(begin)));
    Prune(run.Path("weights"));
  }
  return fetch.directory;
}

}  // namespace quern
