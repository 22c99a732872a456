// crash_child serve DIRECTORY ADDRESS          a replay server, until it is killed
// crash_child write ADDRESS NAME LEDGER BATCH  a writer that stores records NAME-1, NAME-2, ... and keeps a ledger:
// after
//                                              each acknowledgement "COUNT HASH" over all records of its name
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "replay/client.h"
#include "replay/server.h"
#include "replay/writer.h"
#include "tests/replay/trajectories.h"

namespace quern {
namespace {

int Fail(const Status& status) {
  std::fprintf(stderr, "crash_child: %s\n", status.message().c_str());
  return 1;
}

int Serve(char** argv) {
  auto store = Store::Open(argv[2]);
  if (!store.ok()) return Fail(store.status());
  ReplayServer server(store->get());
  if (const Status status = server.Start(argv[3]); !status.ok()) return Fail(status);
  while (true) pause();
}

int Write(char** argv) {
  const auto deadline = [] { return Deadline::After(std::chrono::minutes(5)); };  // on a busy machine
  auto client = ReplayClient::Connect(argv[2]);
  if (!client.ok()) return Fail(client.status());
  auto writer = ReplayWriter::Open(client->get(), argv[3], deadline());
  if (!writer.ok()) return Fail(writer.status());
  const int ledger = open(argv[4], O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (ledger < 0) return Fail(Internal("cannot open the ledger"));
  const uint64_t batch = std::strtoull(argv[5], nullptr, 10);
  for (uint64_t next = (*writer)->acknowledged() + 1;;) {
    for (uint64_t i = 0; i < batch; ++i, ++next) {
      const std::string uid = StrCat(argv[3], "-", next);
      (*writer)->Append(MakeTrajectory(uid, -1, v1::SOURCE_GENERATED, 24).SerializeAsString(), uid);
    }
    if (const Status status = (*writer)->Flush(deadline()); !status.ok()) return Fail(status);
    char line[64];
    const int size = std::snprintf(line, sizeof(line), "%020llu %016llx\n",
                                   static_cast<unsigned long long>((*writer)->acknowledged()),
                                   static_cast<unsigned long long>((*writer)->ledger()));
    if (pwrite(ledger, line, static_cast<size_t>(size), 0) != size) return Fail(Internal("cannot write the ledger"));
  }
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], "serve") == 0) return quern::Serve(argv);
  if (argc == 6 && std::strcmp(argv[1], "write") == 0) return quern::Write(argv);
  std::fprintf(stderr, "crash_child serve DIRECTORY ADDRESS | write ADDRESS NAME LEDGER BATCH\n");
  return 2;
}
