// insert_child DIRECTORY PREFIX: opens the store, inserts for ever in batches of 1 to 4, and prints each uid once it is
// acknowledged. Every fifth batch is sent twice. To be killed.
#include <unistd.h>

#include <cstdio>

#include "replay/store.h"
#include "tests/replay/trajectories.h"

int main(int, char** argv) {
  using namespace quern;
  auto store = Store::Open(argv[1]);
  if (!store.ok()) {
    std::fprintf(stderr, "%s\n", store.status().message().c_str());
    return 1;
  }
  int next = 0;
  for (int batch = 0;; ++batch) {
    std::vector<v1::Trajectory> trajectories;
    std::string lines;
    for (int i = 0; i <= batch % 4; ++i) {
      trajectories.push_back(MakeTrajectory(StrCat(argv[2], "-", next++), -1, v1::SOURCE_GENERATED, 500));
      lines += trajectories.back().uid() + "\n";
    }
    for (int repeat = 0; repeat < (batch % 5 == 0 ? 2 : 1); ++repeat) {
      const auto reply = (*store)->Insert(MakeInsert(trajectories));
      if (!reply.ok()) {
        std::fprintf(stderr, "%s\n", reply.status().message().c_str());
        return 1;
      }
    }
    if (write(STDOUT_FILENO, lines.data(), lines.size()) != static_cast<ssize_t>(lines.size())) return 1;
  }
}
