#pragma once

#include <CLI/CLI.hpp>

namespace quern {

// How `--help` looks: options with their defaults, and without what validators call their ranges; examples at the end.
// Before any command is added.
void SetHelpFormat(CLI::App& app);

// Examples of every command that people type. After all commands were added.
void AddExamples(CLI::App& app);

// Validators whose error says what is meant.
CLI::Validator AtLeastZero();
CLI::Validator AboveZero();

}  // namespace quern
