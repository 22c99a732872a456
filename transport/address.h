#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace quern {

enum class AddressKind { kIpc, kTcp, kInproc };

// An unknown scheme, or an ipc path longer than a socket's name can be (107 bytes), is an error.
Result<AddressKind> ParseAddress(const std::string& address);
// Whether `text` is an address rather than a path.
bool IsAddress(std::string_view text);

// "ipc://FOLDER/NAME.sock", the folder made with mode 700; where that is too long for a socket's name, a folder under
// $XDG_RUNTIME_DIR or /tmp that belongs to the user and is derived from `folder`: the same for every process of the
// user.
Result<std::string> IpcAddress(const std::string& folder, const std::string& name);

// The folder of an ipc address exists (made if missing) and is closed to other users (mode 700).
Status PrepareIpcFolder(const std::string& address);

}  // namespace quern
