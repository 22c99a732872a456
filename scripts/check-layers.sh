#!/usr/bin/env bash
# Fails when a source file includes what its layer may not (docs/architecture.md), or when a layer that is to build with nothing
# but the standard library includes something else.
set -euo pipefail
cd "$(dirname "$0")/.."

git ls-files -co --exclude-standard -- '*.h' '*.cpp' '*.cu' | xargs awk '
  BEGIN {
    allow["base"] = "base"
    allow["compute"] = "base compute"
    allow["model"] = "base compute model"
    allow["model/hf"] = "base compute model model/hf"
    allow["model/tokenizer"] = "base compute model model/hf model/tokenizer"
    allow["model/chat_template"] = "base model/hf model/tokenizer model/chat_template"
    allow["methods"] = "base compute model methods"
    allow["transport"] = "base proto transport"
    allow["replay"] = "base proto transport replay"
    program = "base compute model model/hf model/tokenizer model/chat_template methods proto transport replay"
    allow["actors"] = program " actors"
    allow["learner"] = program " learner"
    allow["service"] = program " actors learner service"
    split("base compute model methods", list, " ")
    for (i in list) bare[list[i]] = 1
  }
  function layer(path,   parts) {
    if (path ~ /^model\/(hf|tokenizer|chat_template)\//) { split(path, parts, "/"); return parts[1] "/" parts[2] }
    split(path, parts, "/")
    return parts[1]
  }
  /^#include "/ {
    from = layer(FILENAME)
    if (!(from in allow)) next
    split($0, quoted, "\"")
    to = layer(quoted[2])
    if (index(" " allow[from] " ", " " to " ") == 0) {
      printf "%s:%d: layer %s may not include %s\n", FILENAME, FNR, from, quoted[2]; bad = 1
    }
  }
  /^#include <(nlohmann|boost|prometheus|google|zmq|rocksdb|yaml-cpp|CLI|pcre2|unicode|xxhash|fmt|absl)/ {
    if (layer(FILENAME) in bare) {
      printf "%s:%d: layer %s builds with the standard library alone: %s\n", FILENAME, FNR, layer(FILENAME), $2; bad = 1
    }
  }
  END { exit bad }
'
