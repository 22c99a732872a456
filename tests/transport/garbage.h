#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/random.h"

namespace quern {

// "ipc://PATH" or "tcp://127.0.0.1:PORT"
inline int ConnectTo(const std::string& address) {
  if (address.starts_with("ipc://")) {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::strncpy(name.sun_path, address.c_str() + 6, sizeof(name.sun_path) - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0) << std::strerror(errno);
    return fd;
  }
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(static_cast<uint16_t>(atoi(address.c_str() + address.rfind(':') + 1)));
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0) << std::strerror(errno);
  return fd;
}

// A ZMTP 3.1 greeting (rfc.zeromq.org/spec/37) of a mechanism, and what may follow.
inline std::string Greeting(const std::string& mechanism) {
  std::string greeting("\xff\0\0\0\0\0\0\0\1\x7f\3\1", 12);
  greeting += mechanism;
  greeting.resize(32, '\0');
  greeting.resize(64, '\0');
  return greeting;
}

inline constexpr uint64_t kGarbageKinds = 7;
// What a stranger sends before it breaks off.
inline std::string Garbage(uint64_t kind, Random& random) {
  std::string bytes;
  const auto noise = [&](uint64_t size) {
    for (uint64_t i = 0; i < size; ++i) bytes.push_back(static_cast<char>(random.Below(256)));
  };
  switch (kind % kGarbageKinds) {
    case 0: noise(1 + random.Below(4096)); break;
    case 1: bytes = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"; break;
    case 2: bytes = Greeting("CURVE").substr(0, 1 + random.Below(63)); break;  // broken off
    case 3:
      bytes = Greeting(random.Below(2) == 0 ? "NULL" : "PLAIN");
      noise(random.Below(512));
      break;
    case 4:  // a handshake command that claims to be of 2^62 bytes
      bytes = Greeting("CURVE") + std::string("\x06\x40\0\0\0\0\0\0\0", 9);
      noise(random.Below(4096));
      break;
    case 5: {  // a bit of a right greeting is wrong
      bytes = Greeting("CURVE");
      const uint64_t bit = random.Below(8 * 32);
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
      noise(200);
      break;
    }
    default: break;  // nothing at all
  }
  return bytes;
}

}  // namespace quern
