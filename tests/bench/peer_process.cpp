#include "tests/bench/peer_process.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "base/check.h"

namespace quern::bench {

PeerProcess::PeerProcess(const std::string& command) {
  int in[2], out[2];
  QUERN_CHECK(pipe(in) == 0 && pipe(out) == 0);
  child_ = fork();
  QUERN_CHECK(child_ >= 0);
  if (child_ == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    for (const int fd : {in[0], in[1], out[0], out[1]}) close(fd);
    execl("/bin/sh", "sh", "-c", command.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  to_ = fdopen(in[1], "w");
  from_ = fdopen(out[0], "r");
}

PeerProcess::~PeerProcess() {
  std::fclose(to_);
  std::fclose(from_);
  waitpid(child_, nullptr, 0);
}

std::string PeerProcess::Ask(const std::string& line) {
  std::fprintf(to_, "%s\n", line.c_str());
  std::fflush(to_);
  char answer[256];
  QUERN_CHECK(std::fgets(answer, sizeof(answer), from_) != nullptr, "the peer has ended");
  return answer;
}

double LastNumberOf(const std::string& command) {
  std::FILE* out = popen(command.c_str(), "r");
  QUERN_CHECK(out != nullptr);
  std::string text;
  char part[4096];
  while (std::fgets(part, sizeof(part), out) != nullptr) text += part;
  pclose(out);
  const size_t end = text.find_last_of("0123456789");
  QUERN_CHECK(end != std::string::npos, "no number in what the peer printed");
  const size_t before = text.find_last_not_of("0123456789.", end);
  return std::strtod(text.c_str() + (before == std::string::npos ? 0 : before + 1), nullptr);
}

std::string Replaced(std::string text, const std::vector<std::pair<std::string, std::string>>& by) {
  for (const auto& [from, to] : by) {
    for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
      text.replace(at, from.size(), to);
    }
  }
  return text;
}

}  // namespace quern::bench
