#include "service/supervisor.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <thread>

#include "base/strings.h"
#include "proto/coordinator.pb.h"
#include "service/event_log.h"
#include "service/live_view.h"
#include "service/role_http.h"
#include "service/role_runner.h"
#include "service/roles.h"
#include "transport/rpc.h"

namespace quern {

namespace {

constexpr auto kPollEvery = std::chrono::milliseconds(50);
constexpr auto kStatusEvery = std::chrono::milliseconds(500);
constexpr auto kFirstBackOff = std::chrono::milliseconds(100);  // doubled with each death of a role
constexpr auto kLongestBackOff = std::chrono::seconds(10);
constexpr auto kStatusDeadline = std::chrono::milliseconds(1000);

class Supervisor {
 public:
  Supervisor(const Run& run, const SupervisorOptions& options)
      : run_(run),
        options_(options),
        runner_(options.in_process ? NewThreadRunner(run) : NewProcessRunner(run)),
        view_("quern run " + run.job.name, options.terminal) {}

  JobOutcome Run() {
    if (Status started = StartAll(); !started.ok()) return Fail(started.message());
    while (!outcome_) {
      std::this_thread::sleep_for(kPollEvery);
      HandleExits();
      if (!outcome_) RestartRoles();
      if (!outcome_ && Interrupts() > 0) Cancel();
      if (!outcome_) PollStatus();
    }
    if (Reachable()) Query();  // the table's last state
    view_.Close();
    ShutDown();
    return *outcome_;
  }

 private:
  int Interrupts() const { return options_.interrupts == nullptr ? 0 : options_.interrupts->load(); }
  bool Reachable() { return client_ != nullptr && runner_->Running(kCoordinatorRole) > 0; }

  Status StartAll() {
    QUERN_ASSIGN_OR_RETURN(RpcClientOptions client, ClientOptions(run_, "supervisor", kCoordinatorRole));
    QUERN_ASSIGN_OR_RETURN(client_, RpcClient::Connect(run_.coordinator_address, std::move(client)));
    QUERN_RETURN_IF_ERROR(runner_->Start(kReplayRole, 0));
    QUERN_RETURN_IF_ERROR(runner_->Start(kCoordinatorRole, 0));
    for (uint32_t rank = 0; rank < static_cast<uint32_t>(run_.job.learner.ranks); ++rank)
      QUERN_RETURN_IF_ERROR(runner_->Start(kLearnerRole, rank));
    for (uint32_t i = 0; i < static_cast<uint32_t>(run_.job.actors); ++i)
      QUERN_RETURN_IF_ERROR(runner_->Start(kActorRole, i));
    return {};
  }

  JobOutcome Fail(const std::string& error) {
    outcome_ = JobOutcome{.state = "failed", .error = error, .result_json = {}};
    ShutDown();
    return *outcome_;
  }

  void HandleExits() {
    for (const RoleExit& exit : runner_->Poll()) {
      if (outcome_) continue;
      if (exit.role == kLearnerRole && ranks_leave_) continue;  // with the one that died before
      const bool works = exit.role == kActorRole || exit.role == kLearnerRole;
      if (exit.clean && works) {
        // Told to leave: the coordinator knows why. If it does not, this role did not do its work.
        PollStatus(true);
        if (outcome_) continue;
      }
      const bool one_of_ranks = exit.role == kLearnerRole && run_.job.learner.ranks > 1;
      std::string what = StrCat(exit.role, exit.role == kActorRole ? StrCat(" ", exit.index) : "",
                                one_of_ranks ? StrCat(" rank ", exit.index) : "",
                                " died: ", exit.clean ? "it left before the job ended" : exit.reason);
      if (!exit.log.empty()) what += " (log: " + exit.log + ")";
      if (exit.hopeless || restarts_ >= run_.job.max_restarts) {
        if (!exit.hopeless) what += StrCat("; max_restarts (", restarts_, ") is used up");
        outcome_ = JobOutcome{.state = "failed", .error = what, .result_json = {}};
        AppendEvent(run_, "supervisor", what);
        broken_ = exit.role != kActorRole;
        continue;
      }
      ++restarts_;
      const int64_t times = deaths_[exit.role]++;
      Note(StrCat(what, "; starting it again (", restarts_, " of ", run_.job.max_restarts, ")"));
      const auto at =
          Clock::now() + std::min<Duration>(kLongestBackOff, kFirstBackOff * (1 << std::min<int64_t>(times, 10)));
      restart_at_[{exit.role, exit.index}] = at;
      if (!one_of_ranks) continue;
      // The others can do nothing without it: all of them start anew from the last checkpoint.
      ranks_leave_ = true;
      runner_->Kill(kLearnerRole);
      for (uint32_t rank = 0; rank < static_cast<uint32_t>(run_.job.learner.ranks); ++rank)
        restart_at_[{exit.role, rank}] = at;
    }
  }

  void RestartRoles() {
    if (ranks_leave_ && runner_->Running(kLearnerRole) > 0) return;
    ranks_leave_ = false;
    for (auto it = restart_at_.begin(); it != restart_at_.end();) {
      if (Clock::now() < it->second) {
        ++it;
        continue;
      }
      const auto& [role, index] = it->first;
      if (Status started = runner_->Start(role, index); !started.ok()) {
        outcome_ = JobOutcome{.state = "failed", .error = started.message(), .result_json = {}};
        return;
      }
      it = restart_at_.erase(it);
    }
  }

  void Note(const std::string& text) {
    view_.Note(text);
    AppendEvent(run_, "supervisor", text);
  }

  std::optional<v1::StatusReply> Query() {
    const Result<v1::StatusReply> status =
        client_->Call<v1::StatusReply>("coordinator.Status", v1::StatusRequest(), Deadline::After(kStatusDeadline));
    if (!status.ok()) return std::nullopt;
    view_.Update(*status);
    return *status;
  }

  void PollStatus(bool now = false) {
    if ((!now && Clock::now() < next_status_) || !Reachable()) return;
    next_status_ = Clock::now() + kStatusEvery;
    const std::optional<v1::StatusReply> status = Query();
    if (!status) return;
    // Its port is another one when the coordinator was started again.
    if (const std::string url = RoleUrl(run_, kCoordinatorRole, 0); !url.empty() && url != page_) {
      page_ = url;
      view_.Note("page: " + url);
    }
    if (status->state() == "succeeded" || status->state() == "failed")
      outcome_ = JobOutcome{.state = status->state(), .error = status->error(), .result_json = status->result_json()};
  }

  void Cancel() {
    outcome_ = JobOutcome{.state = "cancelled", .error = {}, .result_json = {}};
    AppendEvent(run_, "supervisor", "cancelled");
    view_.Note("stopping: actors first, then learner, store and coordinator (Ctrl-C again: at once)");
    if (!Reachable()) return;
    v1::StopRequest stop;
    stop.set_reason("interrupted");
    (void)client_->Call<v1::StopReply>("coordinator.Stop", stop, Deadline::After(kStatusDeadline)).ok();
  }

  // Roles may finish what they are at; then they are killed.
  void ShutDown() {
    const int interrupts_before = std::min(1, Interrupts());
    const std::pair<const char*, int> order[] = {
        {kActorRole, 15}, {kLearnerRole, 20}, {kReplayRole, 15}, {kCoordinatorRole, 5}};
    for (const auto& [role, seconds] : order) {
      runner_->Ask(role);
      // Others may wait in vain for a role that died.
      const Deadline deadline = Deadline::After(std::chrono::seconds(broken_ ? 3 : seconds));
      while (runner_->Running(role) > 0) {
        (void)runner_->Poll();
        if (Interrupts() > interrupts_before || deadline.Expired()) {
          if (!options_.in_process) view_.Note(StrCat("killing ", role));
          runner_->Kill(role);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    }
  }

  const quern::Run& run_;
  const SupervisorOptions& options_;
  std::unique_ptr<RpcClient> client_;
  std::unique_ptr<RoleRunner> runner_;
  LiveView view_;
  std::optional<JobOutcome> outcome_;
  bool ranks_leave_ = false;  // the learner's processes are being ended, to be started again together
  bool broken_ = false;       // a role that is not an actor died for good
  int64_t restarts_ = 0;
  std::map<std::string, int64_t> deaths_;  // by role
  std::map<std::pair<std::string, uint32_t>, Clock::time_point> restart_at_;
  Clock::time_point next_status_{};
  std::string page_;  // where the coordinator's page is
};

}  // namespace

JobOutcome SuperviseRun(const Run& run, const SupervisorOptions& options) { return Supervisor(run, options).Run(); }

}  // namespace quern
