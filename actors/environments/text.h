#pragma once

#include <cstdint>
#include <string>

namespace quern {

// `text`: pieces of one long text, to train a language model of it from scratch. The actor writes a piece after "\x02"
// (which no text holds) and is paid nothing.
//
// Options: file (none: `assignments` below), length (256: characters of a piece), heldout (0.1: the last part of the
// text). Player `writer` cuts pieces at random places of the text but its held-out part, or with its option `part:
// heldout` of that part.

// A made-up text of variables that change and are asked for: a line is `c=4` or, of a variable that has a value, `c?4`.
// What an earlier line says of c is of no use once c has another value.
std::string Assignments(int characters, uint64_t seed);

}  // namespace quern
