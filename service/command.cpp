#include "service/command.h"

#include <CLI/CLI.hpp>
#include <cstdio>

namespace quern {

void CommandSet::SetBody(CLI::App* command, std::function<Result<int>()> body) {
  command->callback([this, body = std::move(body)] { chosen_ = body; });
}

int CommandSet::Run() const {
  QUERN_CHECK(chosen_ != nullptr);
  const Result<int> code = chosen_();
  if (code.ok()) return *code;
  std::fprintf(stderr, "quern: %s\n", code.status().message().c_str());
  return kExitError;
}

int UsageError(const std::string& message) {
  std::fprintf(stderr, "quern: %s (see `quern help`)\n", message.c_str());
  return kExitUsage;
}

}  // namespace quern
