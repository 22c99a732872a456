#pragma once

#include <string>
#include <vector>

namespace quern {

// The process's one libzmq context (so that inproc:// works between any two parts). Never closed. A forked child must
// not use sockets unless it execs.
void* ZmqContext();

// Starts the process's ZAP authenticator if needed and lets clients with these public keys (Z85) into `domain`.
void AllowCurveClients(const std::string& domain, const std::vector<std::string>& public_keys);
void ForgetCurveDomain(const std::string& domain);

}  // namespace quern
