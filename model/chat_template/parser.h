#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/chat_template/value.h"

namespace quern::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct CallArguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr list;  // *list
  ExprPtr dict;  // **dict
};

struct Expr {
  enum class Kind {
    kConstant,     // value
    kName,         // name
    kTuple,        // children
    kList,         // children
    kDict,         // children: key, value, key, value ...
    kAttribute,    // child.name
    kSubscript,    // child[child]
    kSlice,        // child[child:child:child], null where left out
    kCall,         // child(arguments)
    kFilter,       // child | name(arguments); no child in {% filter %}: the block's text
    kTest,         // child is name(arguments)
    kNot,          // child
    kNegate,       // child
    kPlus,         // child
    kBinary,       // child name child; name: + - * / // % **
    kConcat,       // children joined by ~
    kCompare,      // child operators[0] child operators[1] child ...
    kAnd,          // child, child
    kOr,           // child, child
    kConditional,  // child 0 if child 1 else child 2 (or null)
  };
  Kind kind;
  int line;
  int depth = 1;  // of the tree below, bounded
  Value value;
  std::string name;
  std::vector<std::string> operators;
  std::vector<ExprPtr> children;
  CallArguments arguments;
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;

struct Parameters {
  std::vector<std::string> names;
  std::vector<ExprPtr> defaults;  // one per name, or null
};

struct Stmt {
  enum class Kind {
    kText,        // text
    kOutput,      // expr
    kIf,          // branches in order, the one without a condition last
    kFor,         // target in expr (if condition): body, else otherwise
    kSet,         // target = expr
    kSetBlock,    // target = body (through the filters of expr)
    kMacro,       // name, parameters, body
    kCall,        // expr is the call, parameters and body are the caller's
    kFilter,      // body through the filters of expr
    kWith,        // targets[i] = values[i] around body
    kGeneration,  // body
    kBreak,
    kContinue,
  };
  struct Branch {
    ExprPtr condition;
    Body body;
  };
  Kind kind;
  int line;
  std::string text;
  std::string name;
  ExprPtr target;
  ExprPtr expr;
  ExprPtr condition;
  std::vector<Branch> branches;
  std::vector<ExprPtr> targets;
  std::vector<ExprPtr> values;
  Parameters parameters;
  Body body;
  Body otherwise;
};

// Throws Failure with the line.
Body ParseTemplate(std::string_view text);

}  // namespace quern::jinja
