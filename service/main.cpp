#include <CLI/CLI.hpp>

#include "service/command.h"

int main(int argc, char** argv) {
  CLI::App app("Quern: reinforcement learning for language models, from offline data to a better policy", "quern");
  app.require_subcommand(1);
  quern::CommandSet commands(app);
  quern::AddRunCommand(commands);
  quern::AddPolicyCommands(commands);
  quern::AddModelCommands(commands);
  quern::AddReplayCommand(commands);
  quern::AddRoleCommands(commands);
  quern::AddInfoCommands(commands);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    return quern::UsageError(error.what());
  }
  return commands.Run();
}
