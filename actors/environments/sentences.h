#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/random.h"

namespace quern {

// `sentences`: the actor writes a whole sentence of a made-up language, one letter a word, after ":". Which word
// follows which is a random table: the language has words^2 free numbers and nothing else to learn, so that what a
// model lacks is what it has not seen. The reward is the sentence's mean log-probability a word under the language (at
// least -10); success: it has the right length.
//
// Options: words (16), length (12), spread (1.5: of the logarithms of the table's weights; 0 makes all words equally
// likely), language (0: the table's seed). Player `writer` writes the language itself.
class Language {
 public:
  Language(int words, double spread, uint64_t seed);
  // `length` words and a newline.
  std::string Write(Random& random, int length) const;
  double MeanLogProbability(const std::string& text) const;
  // Of word `to` after word `from`; from = the number of words: at the start.
  double Probability(int from, int to) const { return next_[static_cast<size_t>(from)][static_cast<size_t>(to)]; }

 private:
  int words_;
  std::vector<std::vector<double>> next_;
};

}  // namespace quern
