#include "transport/http_server.h"

#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <deque>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"

namespace quern {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using boost::system::error_code;

constexpr size_t kHeaderBytes = 8192;
constexpr size_t kReadBytes = 65536;
constexpr size_t kUnsentBytes = size_t{4} << 20;
constexpr size_t kMinTokenLength = 16;

class Session;

// What sessions and replies share. `context` runs on the server's thread; after `stopped` nothing is posted to it.
struct Shared {
  HttpServerOptions options;
  HttpHandler handler;
  asio::io_context context{1};
  std::set<std::shared_ptr<Session>> sessions;  // the server's thread only
  std::mutex mutex;
  bool stopped = false;

  template <typename F>
  void Post(F f) {
    std::lock_guard lock(mutex);
    if (!stopped) asio::post(context, std::move(f));
  }
};

// Equal or not in a time that does not tell where they differ.
bool SameSecret(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

bool NamesThisMachine(std::string_view host) {
  const size_t colon = host.rfind(':');
  if (colon != std::string_view::npos && host.find(']', colon) == std::string_view::npos) host = host.substr(0, colon);
  return host.empty() || host == "localhost" || host == "127.0.0.1" || host == "[::1]";
}

// One connection; everything on the server's thread but `gone`.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(std::shared_ptr<Shared> shared, tcp::socket socket)
      : shared_(std::move(shared)), stream_(std::move(socket)), buffer_(kReadBytes) {}

  void Read() {
    request_.emplace();
    request_->header_limit(kHeaderBytes);
    request_->body_limit(static_cast<uint64_t>(shared_->options.max_body_bytes));
    ++exchange_;
    headers_sent_ = ended_ = false;
    stream_.expires_after(std::chrono::seconds(shared_->options.idle_timeout_s));
    http::async_read_header(stream_, buffer_, *request_, [self = shared_from_this()](error_code error, size_t) {
      if (error) return self->ReadFailed(error);
      self->OnHeader();
    });
  }

  void Close() {
    gone_ = true;
    unsent_.clear();
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
    stream_.close();
    shared_->sessions.erase(shared_from_this());
  }

  bool gone() const { return gone_; }
  uint64_t exchange() const { return exchange_; }

  // `length`: the size of the whole body, or -1 for pieces.
  void Head(uint64_t exchange, int status, const std::string& content_type, int64_t length) {
    if (exchange != exchange_ || headers_sent_ || gone_) return;
    headers_sent_ = true;
    pieces_ = length < 0;
    const bool old = request_->get().version() < 11;
    keep_alive_ = keep_alive_ && !(pieces_ && old);
    chunked_ = pieces_ && !old;
    std::string head = StrCat("HTTP/1.1 ", status, " ", std::string(http::obsolete_reason(http::int_to_status(status))),
                              "\r\nContent-Type: ", content_type, "\r\nX-Content-Type-Options: nosniff\r\n");
    if (chunked_) head += "Transfer-Encoding: chunked\r\nCache-Control: no-cache\r\n";
    if (!pieces_) head += StrCat("Content-Length: ", length, "\r\n");
    if (status == 401) head += "WWW-Authenticate: Bearer\r\n";
    head += keep_alive_ ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
    Queue(std::move(head));
  }

  void Body(uint64_t exchange, std::string piece) {
    if (exchange != exchange_ || !headers_sent_ || ended_ || piece.empty()) return;
    if (request_->get().method() == http::verb::head) return;
    if (chunked_) piece = StrFormat("%zx\r\n", piece.size()) + piece + "\r\n";
    Queue(std::move(piece));
  }

  void Finish(uint64_t exchange) {
    if (exchange != exchange_ || ended_) return;
    if (chunked_ && request_->get().method() != http::verb::head) Queue("0\r\n\r\n");
    ended_ = true;
    if (!writing_) NextRequest();
  }

  // An answer of the server itself, after which the connection ends.
  void Refuse(int status, std::string_view message) {
    keep_alive_ = false;
    refused_ = true;
    if (shared_->options.refused) shared_->options.refused(status);
    const std::string body = HttpErrorJson(status, message);
    Head(exchange_, status, "application/json", static_cast<int64_t>(body.size()));
    Body(exchange_, body);
    Finish(exchange_);
  }

 private:
  void ReadFailed(error_code error) {
    if (gone_) return;
    const std::string_view limit = "the request is larger than this server takes";
    if (error == http::error::body_limit)
      return Refuse(413, StrCat("the body is larger than ", shared_->options.max_body_bytes, " bytes"));
    if (error == http::error::header_limit || error == http::error::buffer_overflow) return Refuse(431, limit);
    const bool hangup = error == http::error::end_of_stream || error == beast::error::timeout ||
                        error == http::error::partial_message || error.category() == boost::system::system_category();
    if (hangup) {
      // The end between two requests is in order.
      const bool broken_off = exchange_ == 1 || request_->got_some();
      if (broken_off && shared_->options.refused) shared_->options.refused(408);
      return Close();
    }
    Refuse(400, "not an HTTP/1.1 request");
  }

  void OnHeader() {
    const auto& request = request_->get();
    const HttpServerOptions& options = shared_->options;
    if (!options.token.empty()) {
      const std::string_view given = request[http::field::authorization];
      const bool open =
          request.method() == http::verb::get &&
          std::find(options.open_paths.begin(), options.open_paths.end(), request.target()) != options.open_paths.end();
      constexpr std::string_view kBearer = "Bearer ";
      if (!open && (!given.starts_with(kBearer) || !SameSecret(given.substr(kBearer.size()), options.token)))
        return Refuse(401, "this server needs the header \"Authorization: Bearer TOKEN\" with its token");
    } else if (!NamesThisMachine(request[http::field::host])) {
      return Refuse(403, "the Host header names another machine");
    }
    if (beast::iequals(request[http::field::expect], "100-continue")) Queue("HTTP/1.1 100 Continue\r\n\r\n");
    http::async_read(stream_, buffer_, *request_, [self = shared_from_this()](error_code error, size_t) {
      if (error) return self->ReadFailed(error);
      self->OnRequest();
    });
  }

  void OnRequest();

  // Readable while an answer is under way: the client has gone, or sends its next request early.
  void Watch() {
    if (watching_) return;
    watching_ = true;
    stream_.socket().async_wait(tcp::socket::wait_read, [self = shared_from_this()](error_code error) {
      self->watching_ = false;
      if (error || self->gone_ || self->ended_) return;
      char byte;
      const ssize_t got = recv(self->stream_.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
      if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) self->Close();
    });
  }

  void Queue(std::string bytes) {
    if (gone_) return;
    unsent_bytes_ += bytes.size();
    if (unsent_bytes_ > kUnsentBytes + static_cast<size_t>(shared_->options.max_body_bytes)) return Close();
    unsent_.push_back(std::move(bytes));
    if (!writing_) WriteNext();
  }

  void WriteNext() {
    writing_ = true;
    stream_.expires_after(std::chrono::seconds(shared_->options.idle_timeout_s));
    asio::async_write(stream_, asio::buffer(unsent_.front()), [self = shared_from_this()](error_code error, size_t) {
      self->writing_ = false;
      if (self->gone_) return;
      if (error) return self->Close();
      self->unsent_bytes_ -= self->unsent_.front().size();
      self->unsent_.pop_front();
      if (!self->unsent_.empty()) return self->WriteNext();
      if (self->ended_) self->NextRequest();
    });
  }

  void NextRequest() {
    if (gone_) return;
    if (keep_alive_) return Read();
    // The client reads the answer before it sees the end; what it still sends is not waited for.
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    if (!refused_) return Close();
    stream_.expires_after(std::chrono::seconds(2));
    Drain(kUnsentBytes);
  }

  // A connection closed with bytes unread is reset, and the client loses the answer: reads on for a moment.
  void Drain(size_t left) {
    buffer_.clear();
    stream_.async_read_some(buffer_.prepare(kReadBytes), [self = shared_from_this(), left](error_code error, size_t n) {
      if (self->gone_) return;
      if (error || n > left) return self->Close();
      self->Drain(left - n);
    });
  }

  std::shared_ptr<Shared> shared_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> request_;
  std::deque<std::string> unsent_;
  size_t unsent_bytes_ = 0;
  uint64_t exchange_ = 0;  // number of the request: a late reply to an earlier one is nobody's
  bool headers_sent_ = false, pieces_ = false, chunked_ = false, ended_ = false;
  bool keep_alive_ = false, refused_ = false, writing_ = false, watching_ = false;
  std::atomic<bool> gone_{false};
};

class SessionReply : public HttpReply {
 public:
  SessionReply(std::shared_ptr<Shared> shared, std::shared_ptr<Session> session)
      : shared_(std::move(shared)), session_(std::move(session)), exchange_(session_->exchange()) {}
  ~SessionReply() override {
    if (!begun_) Send(500, "application/json", HttpErrorJson(500, "no answer was made; see the server's log"));
    if (!ended_) End();
  }
  void Send(int status, std::string_view content_type, std::string body) override {
    begun_ = ended_ = true;
    shared_->Post(
        [s = session_, e = exchange_, status, type = std::string(content_type), b = std::move(body)]() mutable {
          s->Head(e, status, type, static_cast<int64_t>(b.size()));
          s->Body(e, std::move(b));
          s->Finish(e);
        });
  }
  void Begin(int status, std::string_view content_type) override {
    begun_ = true;
    shared_->Post(
        [s = session_, e = exchange_, status, type = std::string(content_type)] { s->Head(e, status, type, -1); });
  }
  void Write(std::string piece) override {
    shared_->Post([s = session_, e = exchange_, p = std::move(piece)]() mutable { s->Body(e, std::move(p)); });
  }
  void End() override {
    ended_ = true;
    shared_->Post([s = session_, e = exchange_] { s->Finish(e); });
  }
  bool closed() const override { return session_->gone(); }

 private:
  std::shared_ptr<Shared> shared_;
  std::shared_ptr<Session> session_;
  uint64_t exchange_;
  bool begun_ = false, ended_ = false;
};

void Session::OnRequest() {
  keep_alive_ = request_->get().keep_alive();
  auto& message = request_->get();
  HttpRequest request;
  request.method = message.method_string();
  const std::string_view target = message.target();
  const size_t question = target.find('?');
  request.path = target.substr(0, question);
  if (question != std::string_view::npos) request.query = target.substr(question + 1);
  request.content_type = message[http::field::content_type];
  request.body = std::move(message.body());
  stream_.expires_never();
  Watch();
  shared_->handler(std::move(request), std::make_shared<SessionReply>(shared_, shared_from_this()));
}

class BeastServer : public HttpServer {
 public:
  BeastServer(std::shared_ptr<Shared> shared, tcp::acceptor acceptor)
      : shared_(std::move(shared)), acceptor_(std::move(acceptor)), port_(acceptor_.local_endpoint().port()) {
    Accept();
    thread_ = std::thread([this] { shared_->context.run(); });
  }
  ~BeastServer() override {
    shared_->Post([this] {
      error_code ignored;
      acceptor_.close(ignored);
      const auto sessions = shared_->sessions;
      for (const auto& session : sessions) session->Close();
    });
    {
      std::lock_guard lock(shared_->mutex);
      shared_->stopped = true;
    }
    // Nothing is posted any more and every connection is closed: the thread runs out of work.
    thread_.join();
  }
  int port() const override { return port_; }

 private:
  void Accept() {
    acceptor_.async_accept([this](error_code error, tcp::socket socket) {
      if (!acceptor_.is_open()) return;
      if (!error) {
        error_code ignored;
        socket.set_option(tcp::no_delay(true), ignored);
        const auto session = std::make_shared<Session>(shared_, std::move(socket));
        // Beyond the limit a connection ends at once, so that others' are not held up.
        if (shared_->sessions.size() < static_cast<size_t>(shared_->options.max_connections)) {
          shared_->sessions.insert(session);
          session->Read();
        } else if (shared_->options.refused) {
          shared_->options.refused(503);
        }
      } else {
        Log(LogLevel::kWarning, StrCat("http: accept: ", error.message()));
      }
      Accept();
    });
  }

  std::shared_ptr<Shared> shared_;
  tcp::acceptor acceptor_;
  int port_;
  std::thread thread_;
};

}  // namespace

std::string HttpErrorJson(int status, std::string_view message) {
  std::string text;
  for (const char c : message) {
    if (c == '"' || c == '\\') text += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      text += StrFormat("\\u%04x", static_cast<unsigned>(c));
    } else {
      text += c;
    }
  }
  const char* type = status == 401 || status == 403 ? "authentication_error"
                     : status < 500                 ? "invalid_request_error"
                                                    : "server_error";
  return StrCat("{\"error\":{\"message\":\"", text, "\",\"type\":\"", type, "\",\"code\":", status, "}}");
}

Result<std::string> ReadTokenFile(const std::string& path) {
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  const std::string line = text.substr(0, text.find('\n'));
  const size_t begin = line.find_first_not_of(" \t\r"), end = line.find_last_not_of(" \t\r");
  std::string token = begin == std::string::npos ? std::string() : line.substr(begin, end + 1 - begin);
  if (token.size() < kMinTokenLength)
    return InvalidArgument(StrCat(path, ": the token in its first line has ", token.size(), " characters; at least ",
                                  kMinTokenLength, " are needed"));
  return token;
}

Result<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options, HttpHandler handler) {
  error_code error;
  const asio::ip::address address = asio::ip::make_address(options.host, error);
  if (error) return InvalidArgument(StrCat("http: '", options.host, "' is not an IP address; for example 127.0.0.1"));
  if (!address.is_loopback() && options.token.empty())
    return InvalidArgument(
        StrCat("http: ", options.host, " can be reached from other machines: give a file with a token"));
  auto shared = std::make_shared<Shared>();
  shared->options = options;
  shared->handler = std::move(handler);
  tcp::acceptor acceptor(shared->context);
  const tcp::endpoint endpoint(address, static_cast<uint16_t>(options.port));
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(tcp::acceptor::max_listen_connections, error);
  if (error) return FromErrno(error.value(), StrCat("http: cannot listen on ", options.host, ":", options.port));
  return std::unique_ptr<HttpServer>(std::make_unique<BeastServer>(std::move(shared), std::move(acceptor)));
}

}  // namespace quern
