#include "service/join.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include <zmq.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "model/hf/content_hash.h"
#include "service/roles.h"
#include "transport/address.h"
#include "transport/curve_keys.h"
#include "transport/weight_fetch.h"

namespace quern {

namespace {

constexpr char kPrefix[] = "qjoin1";
constexpr size_t kKeyBytes = 32;
constexpr size_t kCheckBytes = 8;
constexpr auto kHelloDeadline = std::chrono::seconds(30);
constexpr auto kTicketDeadline = std::chrono::seconds(10);
constexpr size_t kVersionsKept = 16;

std::string Check(const std::string& bytes) {
  const uint64_t hash = XXH3_64bits(bytes.data(), bytes.size());
  std::string check(kCheckBytes, '\0');
  for (size_t i = 0; i < kCheckBytes; ++i) check[i] = static_cast<char>(hash >> (8 * i));
  return check;
}

Result<std::string> Binary(const std::string& key) {
  uint8_t binary[kKeyBytes];
  if (key.size() != 40 || zmq_z85_decode(binary, key.c_str()) == nullptr) return InvalidArgument("a key is no key");
  return std::string(reinterpret_cast<const char*>(binary), sizeof(binary));
}

std::string Text(std::string_view binary) {
  char text[41];
  zmq_z85_encode(text, reinterpret_cast<const uint8_t*>(binary.data()), kKeyBytes);
  return text;
}

struct Token {
  std::string coordinator_address;
  std::string coordinator_key;
  std::string replay_key;
  CurveKeys actor;
};

Result<Token> ParseToken(const std::string& text) {
  const auto damaged = [] {
    return InvalidArgument("the join token is damaged: take RUN/keys/join.token of the run, all of it");
  };
  std::string hex;
  for (const char c : text)
    if (c != '\n' && c != ' ' && c != '\r') hex.push_back(c);
  if (!hex.starts_with(kPrefix) || hex.size() % 2 != 0 || hex.size() > 4096) return damaged();
  std::string bytes;
  for (size_t i = sizeof(kPrefix) - 1; i + 1 < hex.size(); i += 2) {
    int value = 0;
    for (const char c : {hex[i], hex[i + 1]}) {
      if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return damaged();
      value = 16 * value + (c <= '9' ? c - '0' : c - 'a' + 10);
    }
    bytes.push_back(static_cast<char>(value));
  }
  if (bytes.size() < kCheckBytes + 3 * kKeyBytes + 1) return damaged();
  const std::string body = bytes.substr(kCheckBytes);
  if (bytes.substr(0, kCheckBytes) != Check(body)) return damaged();
  Token token;
  token.coordinator_key = Text(std::string_view(body).substr(0, kKeyBytes));
  token.replay_key = Text(std::string_view(body).substr(kKeyBytes, kKeyBytes));
  token.actor.secret_key = Text(std::string_view(body).substr(2 * kKeyBytes, kKeyBytes));
  token.coordinator_address = body.substr(3 * kKeyBytes);
  char public_key[41];
  if (zmq_curve_public(public_key, token.actor.secret_key.c_str()) != 0) return damaged();
  token.actor.public_key = public_key;
  if (!token.coordinator_address.starts_with("tcp://")) return damaged();
  return token;
}

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
  std::string body;
  for (const std::string& key : {coordinator, replay, actor.secret_key}) {
    QUERN_ASSIGN_OR_RETURN(const std::string binary, Binary(key));
    body += binary;
  }
  body += run.coordinator_address;
  std::string text = kPrefix;
  for (const char c : Check(body) + body) text += StrFormat("%02x", static_cast<unsigned>(static_cast<uint8_t>(c)));
  return WriteSecret(run.Path("keys/join.token"), text + "\n");
}

Result<Run> JoinRun(const std::string& token_or_file, const std::string& directory, uint32_t index,
                    const std::atomic<bool>& stop) {
  std::string text = token_or_file;
  if (!text.starts_with(kPrefix)) {
    QUERN_ASSIGN_OR_RETURN(text, ReadFile(token_or_file));
  }
  QUERN_ASSIGN_OR_RETURN(const Token token, ParseToken(text));
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
