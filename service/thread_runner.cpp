#include <list>
#include <thread>

#include "service/role_runner.h"
#include "service/roles.h"

namespace quern {

namespace {

class ThreadRunner : public RoleRunner {
 public:
  explicit ThreadRunner(const Run& run) : run_(run) {}

  ~ThreadRunner() override {
    for (RoleThread& thread : threads_) thread.stop = true;
    for (RoleThread& thread : threads_) thread.thread.join();
  }

  Status Start(const std::string& role, uint32_t index) override {
    RoleThread& entry = threads_.emplace_back();
    entry.role = role;
    entry.index = index;
    entry.thread = std::thread([this, &entry] {
      entry.status = RunRole(entry.role, entry.index, run_, entry.stop);
      entry.ended = true;
    });
    return {};
  }

  std::vector<RoleExit> Poll() override {
    std::vector<RoleExit> exits;
    for (auto it = threads_.begin(); it != threads_.end();) {
      if (!it->ended) {
        ++it;
        continue;
      }
      it->thread.join();
      exits.push_back({.role = it->role,
                       .index = it->index,
                       .clean = it->status.ok(),
                       .reason = it->status.message(),
                       .log = {},
                       .hopeless = it->role != kActorRole || !WorthAnotherStart(it->status)});
      it = threads_.erase(it);
    }
    return exits;
  }

  int Running(const std::string& role) override {
    int count = 0;
    for (const RoleThread& thread : threads_) count += thread.role == role ? 1 : 0;
    return count;
  }
  void Ask(const std::string& role) override {
    for (RoleThread& thread : threads_)
      if (thread.role == role) thread.stop = true;
  }
  void Kill(const std::string& role) override { Ask(role); }

 private:
  struct RoleThread {
    std::string role;
    uint32_t index = 0;
    std::atomic<bool> stop{false};
    std::atomic<bool> ended{false};
    Status status;  // valid once ended
    std::thread thread;
  };
  const Run& run_;
  std::list<RoleThread> threads_;
};

}  // namespace

std::unique_ptr<RoleRunner> NewThreadRunner(const Run& run) { return std::make_unique<ThreadRunner>(run); }

}  // namespace quern
