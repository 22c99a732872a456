#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "model/chat_template/lexer.h"
#include "model/chat_template/parser.h"

namespace quern::jinja {

// Where a parser is among its tokens, and how deep; makes nodes of the tree. What goes too deep throws Failure.
class TokenCursor {
 public:
  explicit TokenCursor(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  // Both bound the stack: of the parser, and of whoever walks the tree.
  static constexpr int kMaxNesting = 100;
  static constexpr int kMaxDepth = 300;

  // One level more as long as it lives.
  class Nested {
   public:
    explicit Nested(TokenCursor* cursor) : cursor_(cursor) {
      if (++cursor_->nesting_ > kMaxNesting)
        throw Failure{StatusCode::kResourceExhausted, StrCat("nested deeper than ", kMaxNesting), cursor_->Line()};
    }
    ~Nested() { --cursor_->nesting_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    TokenCursor* cursor_;
  };

  const Token& Peek(size_t ahead = 0) const { return tokens_[std::min(pos_ + ahead, tokens_.size() - 1)]; }
  int Line() const { return Peek().line; }
  bool At(TokenKind kind) const { return Peek().kind == kind; }
  bool AtOperator(std::string_view op) const { return At(TokenKind::kOperator) && Peek().text == op; }
  bool AtName(std::string_view name) const { return At(TokenKind::kName) && Peek().text == name; }
  Token Next() { return pos_ + 1 < tokens_.size() ? tokens_[pos_++] : tokens_.back(); }
  void Back() {
    if (pos_ > 0) --pos_;
  }
  bool SkipOperator(std::string_view op) { return AtOperator(op) && (Next(), true); }
  bool SkipName(std::string_view name) { return AtName(name) && (Next(), true); }
  void ExpectOperator(std::string_view op) {
    if (!SkipOperator(op)) FailAt(Line(), StrCat("expected ", op, ", not ", Here()));
  }
  void Expect(TokenKind kind, const char* what) {
    if (!At(kind)) FailAt(Line(), StrCat("expected ", what, ", not ", Here()));
    Next();
  }
  std::string ExpectName() {
    if (!At(TokenKind::kName)) FailAt(Line(), StrCat("expected a name, not ", Here()));
    return Next().text;
  }
  std::string Here() const {
    switch (Peek().kind) {
      case TokenKind::kEnd: return "the end of the template";
      case TokenKind::kBlockEnd: return "%}";
      case TokenKind::kVariableEnd: return "}}";
      case TokenKind::kText: return "text";
      case TokenKind::kVariableBegin: return "{{";
      case TokenKind::kBlockBegin: return "{%";
      case TokenKind::kString: return "a string";
      default: return StrCat("\"", Peek().text.substr(0, 40), "\"");
    }
  }

  ExprPtr New(Expr::Kind kind, int line, std::vector<ExprPtr> children = {}) {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = line;
    expr->children = std::move(children);
    for (const ExprPtr& child : expr->children) Deepen(expr.get(), child);
    return expr;
  }
  template <typename... Children>
  ExprPtr Make(Expr::Kind kind, int line, Children... children) {
    std::vector<ExprPtr> list;
    (list.push_back(std::move(children)), ...);
    return New(kind, line, std::move(list));
  }
  void Deepen(Expr* expr, const ExprPtr& child) {
    if (child == nullptr) return;
    expr->depth = std::max(expr->depth, child->depth + 1);
    if (expr->depth > kMaxDepth)
      throw Failure{StatusCode::kResourceExhausted,
                    StrCat("an expression of more than ", kMaxDepth, " operators one after the other"), expr->line};
  }

 private:
  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int nesting_ = 0;
};

}  // namespace quern::jinja
