#include "service/help.h"

#include <cmath>
#include <map>
#include <memory>

#include "base/strings.h"

namespace quern {

namespace {

class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0) return "";
    std::string out;
    // TEXT:{a,b} becomes {a,b}, INT:INT in [0 - 5] INT.
    const std::string type = option->get_type_name();
    const size_t colon = type.find(':'), set = type.find('{');
    out += " " + (set != std::string::npos ? type.substr(set) : type.substr(0, colon));
    const std::string fallback = option->get_default_str();
    if (!fallback.empty() && fallback != "[]" && fallback != "{}") out += "=" + fallback;
    if (option->get_expected_max() == CLI::detail::expected_max_vector_size) out += " ...";
    if (option->get_required()) out += " REQUIRED";
    return out;
  }
};

CLI::Validator Number(bool zero, const char* meant) {
  return CLI::Validator(
      [zero, meant](std::string& text) -> std::string {
        double value = 0;
        if (CLI::detail::lexical_cast(text, value) && std::isfinite(value) && (value > 0 || (zero && value == 0)))
          return "";
        return StrCat("must be ", meant, ", not '", text, "'");
      },
      "");
}

// By command; those of `quern replay` by "replay COMMAND".
const std::map<std::string, std::string>& Examples() {
  static const std::map<std::string, std::string> examples = {
      {"run",
       "quern run examples/wordle.yaml\n"
       "quern run examples/wordle.yaml seed=1 qsft.beta=32 output_dir=runs/first\n"
       "quern run examples/wordle.yaml --dry-run"},
      {"plan", "quern plan examples/wordle.yaml\nquern plan examples/wordle.yaml actors=8 precision=fp8 -o json"},
      {"resume", "quern resume runs/wordle-1\nquern resume runs/wordle-1 --actors 4"},
      {"submit", "quern submit examples/maze.yaml\nquern submit examples/maze.yaml seed=2 --submission-id maze-seed2"},
      {"list", "quern list\nquern list -o json"},
      {"status", "quern status maze-1\nquern status maze-1 --exit-code -o json"},
      {"wait", "quern wait maze-1 --timeout 600"},
      {"logs", "quern logs maze-1 --follow\nquern logs maze-1 --role actor-0 --tail 50\nquern logs maze-1 --since 15m"},
      {"cancel", "quern cancel maze-1\nquern cancel maze-1 --now"},
      {"delete", "quern delete maze-1"},
      {"slots", "quern slots\nquern slots 2"},
      {"ui", "quern ui --run runs/wordle-1"},
      {"eval",
       "quern eval --run runs/wordle-1 --policy q_sft --episodes 1000\n"
       "quern eval --run runs/wordle-1 --policy player:best -o json"},
      {"export",
       "quern export --run runs/wordle-1 --to my-model\nquern export --run runs/wordle-1 --policy sft --to sft"},
      {"generate",
       "quern generate --model DIR --prompt \"Once upon a time\" --max-tokens 64 --temperature 0.7\n"
       "quern generate --model DIR --prompts prompts.jsonl --n 4 --top-p 0.9 -o json > answers.jsonl"},
      {"score",
       "quern score --model DIR --input texts.jsonl\n"
       "quern score --model DIR --input texts.jsonl --prompt-tokens 64 --key-ratio 0.6"},
      {"budget", "quern budget --model DIR --input heldout.jsonl --max-increase 0.01 --to budgets.json"},
      {"tokenize", "echo '{\"text\": \"Hello\"}' | quern tokenize --model DIR --input -"},
      {"detokenize", "echo '{\"token_ids\": [1, 2, 3]}' | quern detokenize --model DIR --input -"},
      {"inspect", "quern inspect --model DIR"},
      {"init", "quern init --config config.json --tokenizer tokenizer.json --seed 1 --to my-model"},
      {"retrofit", "quern retrofit --model DIR --to DIR-selective"},
      {"serve",
       "quern serve --model DIR --port 8000\n"
       "quern serve --run runs/wordle-1 --follow\n"
       "curl localhost:8000/v1/completions -d '{\"prompt\": \"Once\", \"max_tokens\": 20}'"},
      {"chat", "quern chat --model DIR --input conversations.jsonl --add-generation-prompt"},
      {"doctor", "quern doctor --dir runs"},
      {"version", "quern version"},
      {"help", "quern help\nquern help run"},
      {"replay", "quern replay stats --store runs/wordle-1\nquern replay query --help"},
      {"replay import",
       "quern replay import --store my-store --input games.jsonl --tag mine\n"
       "zcat games.jsonl.gz | quern replay import --store my-store --input -"},
      {"replay query",
       "quern replay query --store runs/wordle-1 --tag online --limit 3\n"
       "quern replay query --store runs/wordle-1 --min-return -2 --depth 1.. --count"},
      {"replay sample",
       "quern replay sample --store runs/wordle-1 --seed 7 --step 3 --count 16\n"
       "quern replay sample --store runs/wordle-1 --watermark 5000 --selector prioritised -o numbers"},
      {"replay export",
       "quern replay export --store runs/wordle-1 --tag heldout --to heldout.jsonl\n"
       "quern replay export --store runs/wordle-1 --min-return 0 --format messages --to - | head"},
      {"replay stats",
       "quern replay stats --store runs/wordle-1\nquern replay stats --store runs/wordle-1 --source generated -o json"},
      {"replay verify", "quern replay verify --store runs/wordle-1 -o json"},
      {"replay compact", "quern replay compact --store runs/wordle-1"},
      {"replay prune",
       "quern replay prune --store runs/wordle-1 --max-bytes 10GiB --dry-run\n"
       "quern replay prune --store runs/wordle-1 --max-age 7d --keep-tag eval"},
      {"replay backup", "quern replay backup --store runs/wordle-1 --to backup"},
      {"replay restore", "quern replay restore --from backup --to runs/wordle-1/replay"}};
  return examples;
}

}  // namespace

void SetHelpFormat(CLI::App& app) {
  app.formatter(std::make_shared<HelpFormatter>());
  app.option_defaults()->always_capture_default();
}

void AddExamples(CLI::App& app) {
  for (const auto& [name, lines] : Examples()) {
    CLI::App* command = &app;
    for (const std::string& word : StrSplit(name, ' ')) command = command->get_subcommand(word);
    std::string footer = "Examples:";
    for (const std::string& line : StrSplit(lines, '\n')) footer += "\n  " + line;
    command->footer(footer + "\n");
  }
}

CLI::Validator AtLeastZero() { return Number(true, "a number, 0 or more"); }
CLI::Validator AboveZero() { return Number(false, "a number above 0"); }

}  // namespace quern
