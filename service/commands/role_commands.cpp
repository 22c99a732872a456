#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "base/log.h"
#include "base/strings.h"
#include "service/command.h"
#include "service/roles.h"
#include "service/supervised.h"

namespace quern {

namespace {

struct RoleOptions {
  std::string run;
  uint32_t index = 0;
};

}  // namespace

void AddRoleCommands(CommandSet& commands) {
  static constexpr std::pair<const char*, const char*> kRoles[] = {
      {kCoordinatorRole, "role: hands out a run's work"},
      {kReplayRole, "role: serves a run's replay store"},
      {kLearnerRole, "role: trains"},
      {kActorRole, "role: plays episodes"},
  };
  for (const auto& [role, description] : kRoles) {
    auto options = std::make_shared<RoleOptions>();
    CLI::App* command = commands.app().add_subcommand(role, description)->group("Roles (started by `quern run`)");
    command->add_option("--job", options->run, "run directory")->required();
    command->add_option("--index", options->index, "number of this process among its role");
    const std::string name = role;
    commands.SetBody(command, [options, name]() -> Result<int> {
      const std::atomic<bool>& stop = InstallRoleSignals();
      SetLogRole(name == kActorRole ? StrCat(name, "-", options->index) : name);
      QUERN_ASSIGN_OR_RETURN(const Run run, LoadRun(options->run));
      const Status status = RunRole(name, options->index, run, stop);
      if (!status.ok() && !(stop.load() && status.code() == StatusCode::kCancelled)) {
        LeaveLastWords(status.message());
        if (WorthAnotherStart(status)) return status;
        std::fprintf(stderr, "quern: %s\n", status.message().c_str());
        return kExitHopeless;
      }
      return kExitOk;
    });
  }
}

}  // namespace quern
