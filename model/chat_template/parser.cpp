#include "model/chat_template/parser.h"

#include <algorithm>
#include <initializer_list>

#include "base/strings.h"
#include "model/chat_template/lexer.h"
#include "model/chat_template/token_cursor.h"

namespace quern::jinja {
namespace {

class Parser : private TokenCursor {
 public:
  explicit Parser(std::vector<Token> tokens) : TokenCursor(std::move(tokens)) {}

  Body Run() {
    Body body = Statements({});
    if (!At(TokenKind::kEnd)) FailAt(Line(), StrCat("unexpected ", Here()));
    return body;
  }

 private:
  // Statements.

  Body Statements(std::initializer_list<std::string_view> ends) {
    const Nested nested(this);
    Body body;
    for (;;) {
      const int line = Line();
      if (At(TokenKind::kEnd)) {
        if (ends.size() == 0) return body;
        FailAt(line, StrCat("the template ends before {% ", *(ends.end() - 1), " %}"));
      }
      if (At(TokenKind::kText)) {
        body.push_back(NewStatement(Stmt::Kind::kText, line));
        body.back()->text = Next().text;
      } else if (At(TokenKind::kVariableBegin)) {
        Next();
        body.push_back(NewStatement(Stmt::Kind::kOutput, line));
        body.back()->expr = Tuple(true);
        Expect(TokenKind::kVariableEnd, "}}");
      } else {
        Expect(TokenKind::kBlockBegin, "{%");
        for (const std::string_view end : ends)
          if (AtName(end)) return body;
        body.push_back(Statement());
        Expect(TokenKind::kBlockEnd, "%}");
      }
    }
  }

  static std::unique_ptr<Stmt> NewStatement(Stmt::Kind kind, int line) {
    auto statement = std::make_unique<Stmt>();
    statement->kind = kind;
    statement->line = line;
    return statement;
  }

  // A block's body up to its end tag, whose name is passed.
  Body Block(std::string_view end) {
    Expect(TokenKind::kBlockEnd, "%}");
    Body body = Statements({end});
    Next();
    return body;
  }

  std::unique_ptr<Stmt> Statement() {
    const int line = Line();
    const std::string tag = ExpectName();
    if (tag == "if") return If(line);
    if (tag == "for") return For(line);
    if (tag == "set") return Set(line);
    if (tag == "macro") {
      auto statement = NewStatement(Stmt::Kind::kMacro, line);
      statement->name = ExpectName();
      statement->parameters = ParameterList();
      statement->body = OutsideLoops("endmacro");
      return statement;
    }
    if (tag == "call") {
      auto statement = NewStatement(Stmt::Kind::kCall, line);
      if (AtOperator("(")) statement->parameters = ParameterList();
      statement->expr = Expression(true);
      if (statement->expr->kind != Expr::Kind::kCall) FailAt(line, "{% call %} needs the call of a macro");
      statement->body = OutsideLoops("endcall");
      return statement;
    }
    if (tag == "filter") {
      auto statement = NewStatement(Stmt::Kind::kFilter, line);
      statement->expr = Filters(nullptr, true);
      statement->body = OutsideLoops("endfilter");
      return statement;
    }
    if (tag == "with") {
      auto statement = NewStatement(Stmt::Kind::kWith, line);
      while (!At(TokenKind::kBlockEnd)) {
        if (!statement->targets.empty()) ExpectOperator(",");
        statement->targets.push_back(Target(false));
        ExpectOperator("=");
        statement->values.push_back(Expression(true));
      }
      statement->body = Block("endwith");
      return statement;
    }
    if (tag == "generation") {
      auto statement = NewStatement(Stmt::Kind::kGeneration, line);
      statement->body = OutsideLoops("endgeneration");
      return statement;
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) FailAt(line, StrCat("{% ", tag, " %} outside of a loop"));
      return NewStatement(tag == "break" ? Stmt::Kind::kBreak : Stmt::Kind::kContinue, line);
    }
    for (const char* known : {"include", "import", "from", "extends", "block", "autoescape", "do", "trans", "debug"})
      if (tag == known) FailAt(line, StrCat("{% ", tag, " %} is not supported in chat templates"));
    FailAt(line, StrCat("unknown tag {% ", tag.substr(0, 40), " %}"));
  }

  std::unique_ptr<Stmt> If(int line) {
    auto statement = NewStatement(Stmt::Kind::kIf, line);
    for (;;) {
      ExprPtr condition = Tuple(false);
      Expect(TokenKind::kBlockEnd, "%}");
      statement->branches.push_back({std::move(condition), Statements({"elif", "else", "endif"})});
      if (!SkipName("elif")) break;
    }
    if (SkipName("else")) {
      Expect(TokenKind::kBlockEnd, "%}");
      statement->branches.push_back({nullptr, Statements({"endif"})});
    }
    Next();
    return statement;
  }

  std::unique_ptr<Stmt> For(int line) {
    auto statement = NewStatement(Stmt::Kind::kFor, line);
    statement->target = Target(false);
    if (!SkipName("in")) FailAt(Line(), StrCat("expected in, not ", Here()));
    statement->expr = Tuple(false);
    if (SkipName("if")) statement->condition = Expression(true);
    if (AtName("recursive")) FailAt(Line(), "recursive loops are not supported in chat templates");
    Expect(TokenKind::kBlockEnd, "%}");
    ++loops_;
    statement->body = Statements({"else", "endfor"});
    --loops_;
    if (SkipName("else")) {
      Expect(TokenKind::kBlockEnd, "%}");
      statement->otherwise = Statements({"endfor"});
    }
    Next();
    return statement;
  }

  std::unique_ptr<Stmt> Set(int line) {
    ExprPtr target = Target(true);
    if (SkipOperator("=")) {
      auto statement = NewStatement(Stmt::Kind::kSet, line);
      statement->target = std::move(target);
      statement->expr = Tuple(true);
      return statement;
    }
    auto statement = NewStatement(Stmt::Kind::kSetBlock, line);
    statement->target = std::move(target);
    statement->expr = Filters(nullptr, false);
    statement->body = OutsideLoops("endset");
    return statement;
  }

  Body OutsideLoops(std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    Body body = Block(end);
    loops_ = loops;
    return body;
  }

  Parameters ParameterList() {
    Parameters parameters;
    ExpectOperator("(");
    while (!SkipOperator(")")) {
      if (!parameters.names.empty()) ExpectOperator(",");
      const int line = Line();
      const std::string name = ExpectName();
      if (std::find(parameters.names.begin(), parameters.names.end(), name) != parameters.names.end())
        FailAt(line, StrCat("two parameters with the name ", name));
      parameters.names.push_back(name);
      parameters.defaults.push_back(SkipOperator("=") ? Expression(true) : nullptr);
      if (parameters.defaults.size() > 1 && parameters.defaults.back() == nullptr &&
          parameters.defaults[parameters.defaults.size() - 2] != nullptr)
        FailAt(line, StrCat("the parameter ", name, " without a default follows one with a default"));
    }
    return parameters;
  }

  // name | name.attribute (in set) | (name, ...) | name, name
  ExprPtr Target(bool with_namespace) {
    const int line = Line();
    std::vector<ExprPtr> parts;
    bool tuple = false;
    for (;;) {
      parts.push_back(TargetPart(with_namespace));
      if (!SkipOperator(",")) break;
      tuple = true;
      if (AtName("in") || AtOperator("=")) break;
    }
    if (!tuple) return std::move(parts[0]);
    return New(Expr::Kind::kTuple, line, std::move(parts));
  }

  ExprPtr TargetPart(bool with_namespace) {
    const Nested nested(this);
    const int line = Line();
    if (SkipOperator("(")) {
      ExprPtr inner = Target(with_namespace);
      ExpectOperator(")");
      return inner;
    }
    ExprPtr name = Make(Expr::Kind::kName, line);
    name->name = ExpectName();
    for (const char* constant : {"true", "false", "none", "True", "False", "None"})
      if (name->name == constant) FailAt(line, StrCat("cannot assign to ", name->name));
    if (!with_namespace || !SkipOperator(".")) return name;
    ExprPtr attribute = Make(Expr::Kind::kAttribute, line, std::move(name));
    attribute->name = ExpectName();
    return attribute;
  }

  // Expressions, from the weakest binding to the strongest.

  bool AtTupleEnd() const {
    return At(TokenKind::kVariableEnd) || At(TokenKind::kBlockEnd) || AtOperator(")") || AtName("recursive");
  }

  // Without brackets: "1, 2" is a tuple.
  ExprPtr Tuple(bool with_condition, bool in_brackets = false) {
    const int line = Line();
    std::vector<ExprPtr> parts;
    bool tuple = false;
    while (!AtTupleEnd()) {
      parts.push_back(Expression(with_condition));
      if (!SkipOperator(",")) break;
      tuple = true;
    }
    if (!tuple && parts.size() == 1) return std::move(parts[0]);
    if (!tuple && !in_brackets) FailAt(line, StrCat("expected an expression, not ", Here()));
    return New(Expr::Kind::kTuple, line, std::move(parts));
  }

  ExprPtr Expression(bool with_condition) {
    const Nested nested(this);
    const int line = Line();
    ExprPtr value = Or();
    while (with_condition && SkipName("if")) {
      ExprPtr condition = Or();
      ExprPtr otherwise = SkipName("else") ? Expression(true) : nullptr;
      value = Make(Expr::Kind::kConditional, line, std::move(value), std::move(condition), std::move(otherwise));
    }
    return value;
  }

  ExprPtr Or() {
    const int line = Line();
    ExprPtr left = And();
    while (SkipName("or")) left = Make(Expr::Kind::kOr, line, std::move(left), And());
    return left;
  }

  ExprPtr And() {
    const int line = Line();
    ExprPtr left = Not();
    while (SkipName("and")) left = Make(Expr::Kind::kAnd, line, std::move(left), Not());
    return left;
  }

  ExprPtr Not() {
    const int line = Line();
    if (!AtName("not")) return Compare();
    const Nested nested(this);
    Next();
    return Make(Expr::Kind::kNot, line, Not());
  }

  ExprPtr Compare() {
    const int line = Line();
    ExprPtr left = Sum();
    std::vector<std::string> operators;
    std::vector<ExprPtr> operands;
    for (;;) {
      std::string op;
      for (const char* known : {"==", "!=", "<", "<=", ">", ">="})
        if (AtOperator(known)) op = known;
      if (AtName("in")) op = "in";
      if (AtName("not") && Peek(1).kind == TokenKind::kName && Peek(1).text == "in") {
        Next();
        op = "not in";
      }
      if (op.empty()) break;
      Next();
      operators.push_back(op);
      operands.push_back(Sum());
    }
    if (operators.empty()) return left;
    operands.insert(operands.begin(), std::move(left));
    ExprPtr compare = New(Expr::Kind::kCompare, line, std::move(operands));
    compare->operators = std::move(operators);
    return compare;
  }

  ExprPtr Binary(std::initializer_list<const char*> operators, ExprPtr (Parser::*operand)()) {
    const int line = Line();
    ExprPtr left = (this->*operand)();
    for (;;) {
      std::string op;
      for (const char* known : operators)
        if (AtOperator(known)) op = known;
      if (op.empty()) return left;
      Next();
      left = Make(Expr::Kind::kBinary, line, std::move(left), (this->*operand)());
      left->name = op;
    }
  }

  ExprPtr Sum() { return Binary({"+", "-"}, &Parser::Concat); }

  ExprPtr Concat() {
    const int line = Line();
    std::vector<ExprPtr> parts;
    do parts.push_back(Product());
    while (SkipOperator("~"));
    return parts.size() == 1 ? std::move(parts[0]) : New(Expr::Kind::kConcat, line, std::move(parts));
  }

  ExprPtr Product() { return Binary({"*", "/", "//", "%"}, &Parser::Power); }
  ExprPtr Power() { return Binary({"**"}, &Parser::Filtered); }
  ExprPtr Filtered() { return Unary(true); }

  ExprPtr Unary(bool with_filters) {
    const Nested nested(this);
    const int line = Line();
    ExprPtr value;
    if (SkipOperator("-")) {
      value = Make(Expr::Kind::kNegate, line, Unary(false));
    } else if (SkipOperator("+")) {
      value = Make(Expr::Kind::kPlus, line, Unary(false));
    } else {
      value = Primary();
    }
    value = Postfix(std::move(value));
    return with_filters ? FiltersAndTests(std::move(value)) : std::move(value);
  }

  ExprPtr Constant(int line, Value value) {
    ExprPtr expr = Make(Expr::Kind::kConstant, line);
    expr->value = std::move(value);
    return expr;
  }

  ExprPtr Primary() {
    const Token token = Next();
    switch (token.kind) {
      case TokenKind::kName: {
        if (token.text == "true" || token.text == "True") return Constant(token.line, true);
        if (token.text == "false" || token.text == "False") return Constant(token.line, false);
        if (token.text == "none" || token.text == "None") return Constant(token.line, None{});
        ExprPtr name = Make(Expr::Kind::kName, token.line);
        name->name = token.text;
        return name;
      }
      case TokenKind::kString: {
        std::string text = token.text;
        while (At(TokenKind::kString)) text += Next().text;
        return Constant(token.line, text);
      }
      case TokenKind::kInt: return Constant(token.line, token.integer);
      case TokenKind::kFloat: return Constant(token.line, token.number);
      case TokenKind::kOperator:
        if (token.text == "(") {
          ExprPtr inner = Tuple(true, true);
          ExpectOperator(")");
          return inner;
        }
        if (token.text == "[") return ListLiteral(token.line);
        if (token.text == "{") return DictLiteral(token.line);
        break;
      default: break;
    }
    if (token.kind != TokenKind::kEnd) Back();
    FailAt(token.line, StrCat("expected an expression, not ", Here()));
  }

  ExprPtr ListLiteral(int line) {
    std::vector<ExprPtr> items;
    while (!SkipOperator("]")) {
      if (!items.empty()) ExpectOperator(",");
      if (SkipOperator("]")) break;
      items.push_back(Expression(true));
    }
    return New(Expr::Kind::kList, line, std::move(items));
  }

  ExprPtr DictLiteral(int line) {
    std::vector<ExprPtr> items;
    while (!SkipOperator("}")) {
      if (!items.empty()) ExpectOperator(",");
      if (SkipOperator("}")) break;
      items.push_back(Expression(true));
      ExpectOperator(":");
      items.push_back(Expression(true));
    }
    return New(Expr::Kind::kDict, line, std::move(items));
  }

  ExprPtr Postfix(ExprPtr value) {
    for (;;) {
      const int line = Line();
      if (SkipOperator(".")) {
        if (At(TokenKind::kInt)) {
          value = Make(Expr::Kind::kSubscript, line, std::move(value), Constant(line, Next().integer));
        } else {
          value = Make(Expr::Kind::kAttribute, line, std::move(value));
          value->name = ExpectName();
        }
      } else if (SkipOperator("[")) {
        value = Subscript(line, std::move(value));
      } else if (AtOperator("(")) {
        value = Call(std::move(value));
      } else {
        return value;
      }
    }
  }

  ExprPtr Subscript(int line, ExprPtr value) {
    std::vector<ExprPtr> bounds(3);
    bool slice = false;
    for (size_t i = 0; i < 3; ++i) {
      if (!AtOperator(":") && !AtOperator("]")) bounds[i] = Tuple(true);
      if (i == 2 || !SkipOperator(":")) break;
      slice = true;
    }
    ExpectOperator("]");
    if (!slice && bounds[0] == nullptr) FailAt(line, "nothing between [ and ]");
    if (!slice) return Make(Expr::Kind::kSubscript, line, std::move(value), std::move(bounds[0]));
    return Make(Expr::Kind::kSlice, line, std::move(value), std::move(bounds[0]), std::move(bounds[1]),
                std::move(bounds[2]));
  }

  ExprPtr Call(ExprPtr callee) {
    ExprPtr call = Make(Expr::Kind::kCall, Line(), std::move(callee));
    ReadArguments(call.get());
    return call;
  }

  void ReadArguments(Expr* expr) {
    CallArguments& arguments = expr->arguments;
    ExpectOperator("(");
    bool first = true;
    while (!SkipOperator(")")) {
      if (!first) ExpectOperator(",");
      if (SkipOperator(")")) break;
      first = false;
      const int line = Line();
      ExprPtr* slot = nullptr;
      if (SkipOperator("**")) {
        slot = &arguments.dict;
      } else if (SkipOperator("*")) {
        slot = &arguments.list;
      } else if (At(TokenKind::kName) && Peek(1).kind == TokenKind::kOperator && Peek(1).text == "=") {
        arguments.named.emplace_back(Next().text, nullptr);
        Next();
        slot = &arguments.named.back().second;
      } else {
        if (!arguments.named.empty() || arguments.list || arguments.dict)
          FailAt(line, "a positional argument follows a named one");
        slot = &arguments.positional.emplace_back();
      }
      if (*slot != nullptr) FailAt(line, "more than one * or ** argument");
      *slot = Expression(true);
      Deepen(expr, *slot);
    }
  }

  ExprPtr FiltersAndTests(ExprPtr value) {
    for (;;) {
      if (AtOperator("|")) {
        value = Filters(std::move(value), false);
      } else if (AtName("is")) {
        value = Test(std::move(value));
      } else if (AtOperator("(")) {
        value = Call(std::move(value));
      } else {
        return value;
      }
    }
  }

  // One or more filters, the first one without "|" if `inline_first`.
  ExprPtr Filters(ExprPtr value, bool inline_first) {
    while (inline_first || SkipOperator("|")) {
      inline_first = false;
      const int line = Line();
      std::string name = ExpectName();
      while (SkipOperator(".")) name += "." + ExpectName();
      value = Make(Expr::Kind::kFilter, line, std::move(value));
      value->name = std::move(name);
      if (AtOperator("(")) ReadArguments(value.get());
    }
    return value;
  }

  ExprPtr Test(ExprPtr value) {
    const int line = Line();
    Next();
    const bool negated = SkipName("not");
    ExprPtr test = Make(Expr::Kind::kTest, line, std::move(value));
    test->name = ExpectName();
    const TokenKind kind = Peek().kind;
    if (AtOperator("(")) {
      ReadArguments(test.get());
    } else if ((kind == TokenKind::kName && !AtName("else") && !AtName("or") && !AtName("and") && !AtName("if")) ||
               kind == TokenKind::kString || kind == TokenKind::kInt || kind == TokenKind::kFloat || AtOperator("[") ||
               AtOperator("{")) {
      if (AtName("is")) FailAt(Line(), "tests cannot be chained with is");
      const Nested nested(this);
      test->arguments.positional.push_back(Postfix(Primary()));
      Deepen(test.get(), test->arguments.positional.back());
    }
    return negated ? Make(Expr::Kind::kNot, line, std::move(test)) : std::move(test);
  }

  int loops_ = 0;
};

}  // namespace

Body ParseTemplate(std::string_view text) { return Parser(Tokenize(text)).Run(); }

}  // namespace quern::jinja
