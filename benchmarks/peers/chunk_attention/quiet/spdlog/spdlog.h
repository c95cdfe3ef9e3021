// Stands in for the spdlog library: as much of its face as ChunkAttention's logging.h names. Whatever
// is logged goes nowhere, so that neither spdlog nor fmt has to be built.
#pragma once

#include <memory>
#include <string>

namespace spdlog {

namespace level {
enum level_enum { debug, info, warn, err };
}

namespace sinks {
class sink {};
}  // namespace sinks

struct logger {
  template <typename... Values>
  void debug(const Values&...) {}
  template <typename... Values>
  void info(const Values&...) {}
  template <typename... Values>
  void warn(const Values&...) {}
  template <typename... Values>
  void error(const Values&...) {}
};

}  // namespace spdlog
