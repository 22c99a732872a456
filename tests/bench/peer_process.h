#pragma once

#include <sys/types.h>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace quern::bench {

// Another program that answers lines with lines, started through the shell; ended when its input closes.
class PeerProcess {
 public:
  explicit PeerProcess(const std::string& command);
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;
  ~PeerProcess();
  // Sends a line and waits for one. CHECK fails when the program has ended.
  std::string Ask(const std::string& line);

 private:
  pid_t child_ = -1;
  std::FILE* to_ = nullptr;
  std::FILE* from_ = nullptr;
};

// Runs a command to its end; the last number it prints. CHECK fails when there is none.
double LastNumberOf(const std::string& command);

// `text` with every occurrence of each first replaced by its second.
std::string Replaced(std::string text, const std::vector<std::pair<std::string, std::string>>& by);

}  // namespace quern::bench
