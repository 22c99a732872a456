#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "service/job.h"

namespace quern {

// One job of the queue: a folder HOME/jobs/ID with
//   job.json      the resolved job
//   queue.json    written last at submission: from then on the job exists
//   attempt-N.log what `quern run` or `quern resume` printed, one file an attempt
//   cancel        somebody wants it to end: empty, or "now"; "told" once its supervisor was told so
//   ended.json    how it ended
// and its run directory (run/, unless the job names another). Whether it runs is not written down: it does from its
// first attempt until its end is known, and a launcher takes up what no process holds the run's lock of. So the table
// is right after any crash.
struct QueuedJob {
  std::string id;
  std::string directory;      // absolute
  std::string run_directory;  // absolute
  std::string state;          // queued | running | succeeded | failed | cancelled
  std::string error;          // one line, of failed
  std::string progress;       // the last line of the newest attempt
  int64_t submitted_unix_ms = 0;
  int64_t ended_unix_ms = 0;  // 0: not yet
  int attempts = 0;
  bool cancel_asked = false;
  bool cancel_told = false;  // the one that runs, so that nobody tells it twice
  bool held = false;         // a process holds the run's lock

  bool ended() const { return state == "succeeded" || state == "failed" || state == "cancelled"; }
  std::string Path(const std::string& name) const;
  std::string AttemptLog(int attempt) const;
};

// The table of submitted jobs of this user on this machine. Any number of processes may use it at once.
class JobQueue {
 public:
  // $QUERN_HOME, else $XDG_STATE_HOME/quern, else ~/.local/state/quern; made when missing.
  static Result<JobQueue> Open();
  static Result<JobQueue> OpenAt(const std::string& home);

  const std::string& home() const { return home_; }
  // Ids are NAME-N, or the submission id: submitted again with the same id, the same job is not queued again (`*again`)
  // and another job is refused.
  Result<std::string> Submit(Job job, const std::string& submission_id, bool* again);
  Result<std::vector<QueuedJob>> List() const;  // in the order of submission
  // NotFound names the id.
  Result<QueuedJob> Find(const std::string& id) const;

  // Asks; a running job's supervisor gets one signal (it stops in order) or, with `now`, two. Where none can be found
  // yet, the launcher tells it with TellToEnd.
  Status Cancel(const QueuedJob& job, bool now) const;
  // Nothing where the run has no supervisor at the moment.
  Status TellToEnd(const QueuedJob& job) const;
  // An ended job goes back to the queue and on from where it was.
  Status Requeue(const QueuedJob& job) const;
  // Removes an ended job, and its run directory when that lies in the queue.
  Status Delete(const QueuedJob& job) const;
  // Of the launcher.
  Status RecordEnd(const QueuedJob& job, const std::string& state, const std::string& error) const;

  // Jobs that may run at once; 1 unless set.
  int slots() const;
  Status SetSlots(int slots) const;

 private:
  Status TellToEnd(const QueuedJob& job, int wish_fd) const;
  explicit JobQueue(std::string home) : home_(std::move(home)) {}
  Result<std::optional<QueuedJob>> Read(const std::string& id) const;  // nothing while it is being submitted

  std::string home_;
};

}  // namespace quern
