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

Result<std::unique_ptr<Replay>> OpenReplay(const std::string& where, const OpenReplayOptions& options) {
  if (IsAddress(where)) {
    QUERN_ASSIGN_OR_RETURN(std::unique_ptr<ReplayClient> client, ReplayClient::Connect(where, options.client));
    return std::unique_ptr<Replay>(std::move(client));
  }
  StoreOptions store_options;
  store_options.create_if_missing = options.create_if_missing;
  Result<std::unique_ptr<Store>> store = Store::Open(where, store_options);
  if (store.ok()) return std::unique_ptr<Replay>(std::move(*store));
  // Open elsewhere: its server may be asked instead.
  if (store.status().code() != StatusCode::kFailedPrecondition) return store.status();
  const std::optional<std::string> address = ReadServerAddress(where);
  if (!address || !IsAddress(*address)) return store.status();
  QUERN_ASSIGN_OR_RETURN(std::unique_ptr<ReplayClient> client, ReplayClient::Connect(*address, options.client));
  return std::unique_ptr<Replay>(std::move(client));
}

}  // namespace quern
