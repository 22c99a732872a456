#include "service/job_queue.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/file.h"
#include "base/strings.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr char kNow[] = "now\n", kTold[] = "told\n";  // in the file `cancel`
constexpr size_t kIdBytes = 64;
constexpr int kMostSlots = 1024;

int64_t UnixMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

Status CheckId(const std::string& id) {
  const bool known = std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.';
  });
  if (id.empty() || id.size() > kIdBytes || !known || id[0] == '.')
    return InvalidArgument(StrCat("'", id, "': an id has 1 to ", kIdBytes, " letters, digits, '-', '_' and '.'"));
  return {};
}

Result<Json> ReadJson(const std::string& path) {
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return DataLoss(path + ": is damaged: it holds no JSON object");
  return json;
}

// The process that holds the lock of a run; 0: none does.
pid_t RunHolder(const std::string& run_directory) {
  const int fd = open(JoinPath(run_directory, "run.lock").c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return 0;
  pid_t holder = 0;
  // Shared: another process that looks is no holder.
  if (flock(fd, LOCK_SH | LOCK_NB) != 0) {
    char text[32] = {};
    holder = pread(fd, text, sizeof(text) - 1, 0) > 0 ? atoi(text) : -1;
  }
  close(fd);
  return holder;
}

// Without the output directory, which a submission chooses itself.
std::string Fingerprint(Job job) {
  job.output_dir.clear();
  return JobToJson(job);
}

std::string LastLine(const std::string& path) {
  const Result<std::string> text = ReadFile(path);
  if (!text.ok()) return {};
  size_t end = text->find_last_not_of('\n');
  if (end == std::string::npos) return {};
  const size_t begin = text->rfind('\n', end);
  return text->substr(begin == std::string::npos ? 0 : begin + 1, end - (begin == std::string::npos ? -1 : begin));
}

}  // namespace

std::string QueuedJob::Path(const std::string& name) const { return JoinPath(directory, name); }
std::string QueuedJob::AttemptLog(int attempt) const { return Path(StrCat("attempt-", attempt, ".log")); }

Result<JobQueue> JobQueue::Open() {
  const auto variable = [](const char* name) {
    const char* value = getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (const std::string home = variable("QUERN_HOME"); !home.empty()) return OpenAt(home);
  if (const std::string state = variable("XDG_STATE_HOME"); !state.empty()) return OpenAt(JoinPath(state, "quern"));
  const std::string home = variable("HOME");
  if (home.empty()) return FailedPrecondition("neither QUERN_HOME nor HOME is set: say where jobs are kept");
  return OpenAt(JoinPath(home, ".local/state/quern"));
}

Result<JobQueue> JobQueue::OpenAt(const std::string& home) {
  QUERN_RETURN_IF_ERROR(MakeDirectories(JoinPath(home, "jobs")));
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::canonical(home, error);
  if (error) return FromErrno(error.value(), home);
  return JobQueue(absolute);
}

Result<std::string> JobQueue::Submit(Job job, const std::string& submission_id, bool* again) {
  *again = false;
  std::string id = submission_id;
  std::string directory;
  if (id.empty()) {
    for (int n = 1;; ++n) {
      id = StrCat(job.name, "-", n);
      QUERN_RETURN_IF_ERROR(CheckId(id).Annotate("the job's name"));
      directory = JoinPath(home_, "jobs/" + id);
      if (mkdir(directory.c_str(), 0700) == 0) break;
      if (errno != EEXIST) return FromErrno(errno, directory);
    }
  } else {
    QUERN_RETURN_IF_ERROR(CheckId(id).Annotate("--submission-id"));
    directory = JoinPath(home_, "jobs/" + id);
    if (mkdir(directory.c_str(), 0700) != 0) {
      if (errno != EEXIST) return FromErrno(errno, directory);
      // Where the first submission stopped before it was whole, this one completes it.
      if (PathExists(JoinPath(directory, "queue.json"))) {
        QUERN_ASSIGN_OR_RETURN(const Job before, LoadJob(JoinPath(directory, "job.json"), {}));
        if (Fingerprint(before) != Fingerprint(job))
          return AlreadyExists(id + ": was submitted before with another job: choose another --submission-id");
        *again = true;
        return id;
      }
    }
  }
  const bool own = job.output_dir.empty();
  if (own) job.output_dir = JoinPath(directory, "run");
  job.output_dir = std::filesystem::absolute(job.output_dir).lexically_normal();
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(directory, "job.json"), JobToJson(job)));
  const Json json = {{"submitted_unix_ms", UnixMs()}, {"run_directory", job.output_dir}};
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(directory, "queue.json"), json.dump(2) + "\n"));
  return id;
}

Result<std::optional<QueuedJob>> JobQueue::Read(const std::string& id) const {
  QueuedJob job;
  job.id = id;
  job.directory = JoinPath(home_, "jobs/" + id);
  if (!PathExists(job.Path("queue.json"))) return std::optional<QueuedJob>();
  QUERN_ASSIGN_OR_RETURN(const Json queue, ReadJson(job.Path("queue.json")));
  job.submitted_unix_ms = queue.value("submitted_unix_ms", int64_t{0});
  job.run_directory = queue.value("run_directory", std::string());
  while (PathExists(job.AttemptLog(job.attempts + 1))) ++job.attempts;
  const Result<std::string> cancel = ReadFile(job.Path("cancel"));
  job.cancel_asked = cancel.ok();
  job.cancel_told = cancel.ok() && *cancel == kTold;
  job.held = RunHolder(job.run_directory) != 0;
  if (job.held) {
    job.state = "running";
  } else if (PathExists(job.Path("ended.json"))) {
    QUERN_ASSIGN_OR_RETURN(const Json ended, ReadJson(job.Path("ended.json")));
    job.state = ended.value("state", "failed");
    job.error = ended.value("error", "");
    job.ended_unix_ms = ended.value("ended_unix_ms", int64_t{0});
  } else if (job.attempts > queue.value("attempts_before", 0)) {
    job.state = "running";
  } else {
    job.state = job.cancel_asked ? "cancelled" : "queued";
  }
  if (job.attempts > 0) job.progress = LastLine(job.AttemptLog(job.attempts));
  return std::optional<QueuedJob>(std::move(job));
}

Result<std::vector<QueuedJob>> JobQueue::List() const {
  QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> ids, ListDirectory(JoinPath(home_, "jobs")));
  std::vector<QueuedJob> jobs;
  for (const std::string& id : ids) {
    Result<std::optional<QueuedJob>> job = Read(id);
    if (!job.ok() && job.status().code() == StatusCode::kNotFound) continue;  // deleted meanwhile
    QUERN_RETURN_IF_ERROR(job.status());
    if (*job) jobs.push_back(std::move(**job));
  }
  std::stable_sort(jobs.begin(), jobs.end(),
                   [](const QueuedJob& a, const QueuedJob& b) { return a.submitted_unix_ms < b.submitted_unix_ms; });
  return jobs;
}

Result<QueuedJob> JobQueue::Find(const std::string& id) const {
  QUERN_RETURN_IF_ERROR(CheckId(id));
  QUERN_ASSIGN_OR_RETURN(std::optional<QueuedJob> job, Read(id));
  if (!job) return NotFound(id + ": no such job; see quern list");
  return std::move(*job);
}

Status JobQueue::Cancel(const QueuedJob& job, bool now) const {
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(job.Path("cancel"), now ? kNow : ""));
  return TellToEnd(job);
}

Status JobQueue::TellToEnd(const QueuedJob& job) const {
  const std::string path = job.Path("cancel");
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT ? Status() : FromErrno(errno, path);
  // The command and the launcher may be here at once.
  const bool locked = flock(fd, LOCK_EX) == 0;
  const Status told = locked ? TellToEnd(job, fd) : FromErrno(errno, path);
  close(fd);
  return told;
}

Status JobQueue::TellToEnd(const QueuedJob& job, int wish_fd) const {
  char text[16] = {};
  if (pread(wish_fd, text, sizeof(text) - 1, 0) < 0) return FromErrno(errno, job.Path("cancel"));
  const std::string wish = text;
  const pid_t holder = RunHolder(job.run_directory);
  if (holder <= 0 || wish == kTold) return {};
  for (int signals = wish == kNow ? 2 : 1; signals > 0; --signals) {
    if (kill(holder, SIGINT) != 0 && errno != ESRCH) return FromErrno(errno, job.id);
    if (signals > 1) std::this_thread::sleep_for(std::chrono::milliseconds(100));  // or the two would be one
  }
  const auto size = static_cast<ssize_t>(std::strlen(kTold));
  return pwrite(wish_fd, kTold, static_cast<size_t>(size), 0) == size ? Status() : FromErrno(errno, job.Path("cancel"));
}

Status JobQueue::Requeue(const QueuedJob& job) const {
  if (!job.ended()) return FailedPrecondition(job.id + ": is " + job.state + " already");
  if (job.state == "succeeded") return FailedPrecondition(job.id + ": has succeeded, nothing is left to do");
  QUERN_ASSIGN_OR_RETURN(Json queue, ReadJson(job.Path("queue.json")));
  queue["attempts_before"] = job.attempts;
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(job.Path("queue.json"), queue.dump(2) + "\n"));
  QUERN_RETURN_IF_ERROR(RemoveTree(job.Path("cancel")));
  return RemoveTree(job.Path("ended.json"));
}

Status JobQueue::Delete(const QueuedJob& job) const {
  if (!job.ended()) return FailedPrecondition(StrCat(job.id, ": is ", job.state, ": quern cancel ", job.id, " first"));
  // From here on it does not exist, wherever this is interrupted.
  QUERN_RETURN_IF_ERROR(RemoveTree(job.Path("queue.json")));
  return RemoveTree(job.directory);
}

Status JobQueue::RecordEnd(const QueuedJob& job, const std::string& state, const std::string& error) const {
  const Json json = {{"state", state}, {"error", error}, {"ended_unix_ms", UnixMs()}};
  return WriteFileAtomic(job.Path("ended.json"), json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

int JobQueue::slots() const {
  const Result<std::string> text = ReadFile(JoinPath(home_, "slots"));
  return text.ok() ? std::clamp(atoi(text->c_str()), 1, kMostSlots) : 1;
}

Status JobQueue::SetSlots(int slots) const {
  if (slots < 1 || slots > kMostSlots) return InvalidArgument(StrCat("slots: 1 to ", kMostSlots));
  return WriteFileAtomic(JoinPath(home_, "slots"), StrCat(slots, "\n"));
}

}  // namespace quern
