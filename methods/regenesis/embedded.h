#pragma once

namespace quern {

// guidelines.txt and templates.txt of this folder, as they were when the program was built.
extern const char kEmbeddedGuidelines[];
extern const char kEmbeddedTemplates[];

}  // namespace quern
