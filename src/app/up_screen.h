// Log lines of all nodes, and a table beneath them on a terminal.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

namespace capstan::app {

/// On a terminal the table stays below the lines, which scroll; elsewhere there are only lines,
/// "node 1 | text", and the table is not shown.
class UpScreen {
 public:
  explicit UpScreen(FILE* out);
  ~UpScreen();  // leaves the last table standing
  UpScreen(const UpScreen&) = delete;
  UpScreen& operator=(const UpScreen&) = delete;

  bool live() const { return live_; }
  int width() const;  // columns; 0: no terminal
  void line(int node, const std::string& text);
  void note(const std::string& text);  // of `up` itself
  void table(const std::vector<std::string>& lines);

 private:
  void write(const std::string& text);
  std::string erased() const;
  std::string drawn() const;

  FILE* out_;
  bool live_ = false;
  size_t shown_ = 0;  // lines of the table on the screen
  std::vector<std::string> table_;
};

}  // namespace capstan::app
