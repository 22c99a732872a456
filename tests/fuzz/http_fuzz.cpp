#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "transport/http_server.h"

// Whatever comes, the server answers or closes, and then answers the next one.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  static const std::unique_ptr<HttpServer> server = [] {
    SetLogLevel(LogLevel::kError);
    HttpServerOptions options;
    options.max_body_bytes = 4096;
    auto made = HttpServer::Start(options, [](HttpRequest request, std::shared_ptr<HttpReply> reply) {
      QUERN_CHECK(request.body.size() <= 4096 && request.path.size() < 16384);
      if (request.path == "/stream") {
        reply->Begin(200, "text/plain");
        reply->Write(request.body);
        reply->End();
      } else {
        reply->Send(200, "text/plain", request.method + request.path + request.query + request.content_type);
      }
    });
    QUERN_CHECK(made.ok(), made.status().ToString());
    return std::move(*made);
  }();
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(static_cast<uint16_t>(server->port()));
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  // From another address of this host every time: one alone has ports for ten seconds of this.
  static uint32_t inputs = 0;
  sockaddr_in mine{};
  mine.sin_family = AF_INET;
  mine.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + inputs++ % 4000);
  const int later = 1;  // the port, when the connection's other end is known
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &later, sizeof(later));
  QUERN_CHECK(bind(fd, reinterpret_cast<sockaddr*>(&mine), sizeof(mine)) == 0);
  QUERN_CHECK(connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof(name)) == 0);
  const linger reset{1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
  (void)send(fd, data, size, MSG_NOSIGNAL);
  shutdown(fd, SHUT_WR);
  char buffer[4096];
  while (recv(fd, buffer, sizeof(buffer), 0) > 0) {
  }
  close(fd);
  return 0;
}
