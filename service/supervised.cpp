#include "service/supervised.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdlib>

namespace quern {

namespace {

constexpr unsigned kLeaveWithinSeconds = 30;
constexpr unsigned kLeaveAloneWithinSeconds = 5;  // when the supervisor, and with it every other role, is gone

pid_t supervisor = 0;

std::atomic<bool> asked_to_leave{false};
std::atomic<int> interrupts{0};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void OnRoleSignal(int) {
  asked_to_leave = true;
  // SIGALRM's default action ends the process.
  alarm(supervisor != 0 && getppid() != supervisor ? kLeaveAloneWithinSeconds : kLeaveWithinSeconds);
}

void OnSupervisorSignal(int) { ++interrupts; }

void Handle(int signal, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigaction(signal, &action, nullptr);
}

}  // namespace

void LeaveLastWords(const std::string& reason) {
  if (getenv(kSupervisorVariable) == nullptr) return;
  // Without them the supervisor reads the log.
  (void)!pwrite(kLastWordsFd, reason.data(), reason.size(), 0);
}

const std::atomic<bool>& InstallRoleSignals() {
  Handle(SIGTERM, OnRoleSignal);
  Handle(SIGINT, OnRoleSignal);
  Handle(SIGPIPE, SIG_IGN);
  if (const char* started_by = getenv(kSupervisorVariable)) {
    supervisor = atoi(started_by);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != supervisor) OnRoleSignal(SIGTERM);  // it died before the line above
  }
  return asked_to_leave;
}

const std::atomic<int>& InstallSupervisorSignals() {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) Handle(signal, OnSupervisorSignal);
  Handle(SIGPIPE, SIG_IGN);
  return interrupts;
}

}  // namespace quern
