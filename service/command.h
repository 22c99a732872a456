#pragma once

#include <functional>
#include <string>

#include "base/status.h"

namespace CLI {
class App;
}

namespace quern {

// What `quern` answers to the shell (docs/cli.md). Scripts rely on these.
enum ExitCode : int {
  kExitOk = 0,
  kExitError = 1,  // a Status: one line on stderr
  kExitUsage = 2,  // the command line itself is wrong
  kExitJobFailed = 100,
  kExitNotFinished = 101,
  kExitNotFound = 102,
  kExitCancelled = 103,
  kExitHopeless = 104,  // of a role, to its supervisor: to start it again is no use
};

// The commands of the binary. A command is one file in service/commands/ with one function Add...Command(CommandSet&),
// declared below and called from main.cpp. It declares its options on a CLI::App and gives a body:
//
//   void AddVersionCommand(CommandSet& commands) {
//     struct Options { std::string model; };
//     auto options = std::make_shared<Options>();                        // lives as long as the body
//     CLI::App* command = commands.app().add_subcommand("version", "print the version");
//     command->add_option("--model", options->model, "model directory")->required();
//     commands.SetBody(command, [options]() -> Result<int> { ...; return kExitOk; });
//   }
//
// Nested commands (`quern replay import`): add_subcommand on the parent, parent->require_subcommand(1), bodies on the
// children. The body runs after parsing. Its Status is printed as one line "quern: MESSAGE" on stderr and becomes exit
// code 1; it returns UsageError(...) for exit code 2. Results go to stdout, everything else to stderr (base/log.h).
class CommandSet {
 public:
  explicit CommandSet(CLI::App& app) : app_(app) {}
  CLI::App& app() { return app_; }
  void SetBody(CLI::App* command, std::function<Result<int>()> body);
  // Runs the body of the command that was parsed; prints its error. The process' exit code.
  int Run() const;

 private:
  CLI::App& app_;
  std::function<Result<int>()> chosen_;
};

// Prints "quern: MESSAGE" and the way to help; returns kExitUsage, for bodies that find a mistake the parser cannot
// see.
int UsageError(const std::string& message);

void AddRunCommand(CommandSet& commands);      // run
void AddPlanCommand(CommandSet& commands);     // plan
void AddResumeCommand(CommandSet& commands);   // resume
void AddQueueCommands(CommandSet& commands);   // submit, list, status, wait, logs, cancel, delete, slots
void AddUiCommand(CommandSet& commands);       // ui
void AddRoleCommands(CommandSet& commands);    // coordinator, replay-server, learner, actor
void AddReplayCommand(CommandSet& commands);   // replay import|query|export|stats|verify
void AddModelCommands(CommandSet& commands);   // generate, score, budget, tokenize, detokenize, inspect, init
void AddServeCommand(CommandSet& commands);    // serve
void AddChatCommand(CommandSet& commands);     // chat
void AddPolicyCommands(CommandSet& commands);  // eval, export
void AddInfoCommands(CommandSet& commands);    // version, help, doctor

}  // namespace quern
