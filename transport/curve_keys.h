#pragma once

#include <string>
#include <vector>

#include "base/status.h"

namespace quern {

// A CURVE key pair in Z85 (40 characters each).
struct CurveKeys {
  std::string public_key;
  std::string secret_key;
};

CurveKeys GenerateCurveKeys();

// FOLDER/ROLE.secret (mode 600, both keys) and FOLDER/ROLE.public (mode 644). The folder is made with mode 700 if
// missing. A secret file that others can read is an error. Safe against another process creating the same keys at the
// same time.
Result<CurveKeys> LoadOrCreateKeys(const std::string& folder, const std::string& role);
Result<CurveKeys> LoadKeys(const std::string& folder, const std::string& role);
Result<std::string> LoadPublicKey(const std::string& folder, const std::string& role);
// Public keys of all roles with a file in the folder: a server's list of allowed clients.
Result<std::vector<std::string>> LoadPublicKeys(const std::string& folder);

}  // namespace quern
