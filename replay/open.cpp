#include <fcntl.h>
#include <unistd.h>

#include "base/file.h"
#include "replay/client.h"
#include "replay/replay.h"
#include "replay/server_address.h"
#include "replay/store.h"
#include "transport/address.h"

namespace quern {

namespace {

std::string AddressPath(const std::string& directory) { return JoinPath(directory, "server.address"); }

}  // namespace

Status WriteServerAddress(const std::string& directory, const std::string& address) {
  return WriteFileAtomic(AddressPath(directory), address + "\n");
}

void RemoveServerAddress(const std::string& directory) { unlink(AddressPath(directory).c_str()); }

std::optional<std::string> ReadServerAddress(const std::string& directory) {
  Result<std::string> text = ReadFile(AddressPath(directory));
  if (!text.ok()) return std::nullopt;
  while (!text->empty() && text->back() == '\n') text->pop_back();
  return *text;
}

// RocksDB locks the file for as long as it has the database open.
bool StoreInUse(const std::string& directory) {
  const int fd = open(JoinPath(directory, "LOCK").c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  const bool asked = fcntl(fd, F_GETLK, &lock) == 0;
  close(fd);
  return asked && lock.l_type != F_UNLCK;
}

Result<std::unique_ptr<Replay>> OpenReplay(const std::string& where, const OpenReplayOptions& options) {
  if (IsAddress(where)) {
    QUERN_ASSIGN_OR_RETURN(std::unique_ptr<ReplayClient> client, ReplayClient::Connect(where, options.client));
    return std::unique_ptr<Replay>(std::move(client));
  }
  Status status;
  if (!options.read_only || !StoreInUse(where)) {
    StoreOptions store_options;
    store_options.create_if_missing = options.create_if_missing;
    store_options.read_only = options.read_only;
    Result<std::unique_ptr<Store>> store = Store::Open(where, store_options);
    if (store.ok()) return std::unique_ptr<Replay>(std::move(*store));
    status = store.status();
  } else {
    status = FailedPrecondition(where + ": another process has this store open: wait for it, or stop it");
  }
  // Open elsewhere: its server may be asked instead.
  if (status.code() != StatusCode::kFailedPrecondition) return status;
  const std::optional<std::string> address = ReadServerAddress(where);
  if (!address || !IsAddress(*address)) return status;
  QUERN_ASSIGN_OR_RETURN(std::unique_ptr<ReplayClient> client, ReplayClient::Connect(*address, options.client));
  return std::unique_ptr<Replay>(std::move(client));
}

}  // namespace quern
