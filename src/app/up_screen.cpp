#include "app/up_screen.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace capstan::app {
namespace {

// One of six colours by node, so that an eye can follow one of them.
std::string colour(int node) { return "\x1b[" + std::to_string(31 + node % 6) + "m"; }

}  // namespace

UpScreen::UpScreen(FILE* out) : out_(out) {
  const char* terminal = std::getenv("TERM");
  live_ =
      ::isatty(::fileno(out)) == 1 && terminal != nullptr && std::string_view(terminal) != "dumb";
}

UpScreen::~UpScreen() { std::fflush(out_); }

int UpScreen::width() const {
  winsize size{};
  if (!live_ || ::ioctl(::fileno(out_), TIOCGWINSZ, &size) != 0) return 0;
  return size.ws_col;
}

void UpScreen::write(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), out_);
  std::fflush(out_);
}

std::string UpScreen::erased() const {
  return shown_ == 0 ? "" : "\x1b[" + std::to_string(shown_) + "A\r\x1b[J";
}

std::string UpScreen::drawn() const {
  std::string text;
  for (size_t i = 0; i < table_.size(); ++i) {
    text += (i == 0 ? "\x1b[1m" + table_[i] + "\x1b[0m" : table_[i]) + "\n";
  }
  return text;
}

void UpScreen::line(int node, const std::string& text) {
  const std::string name = "node " + std::to_string(node) + " | ";
  if (!live_) return write(name + text + "\n");
  write(erased() + colour(node) + name + "\x1b[0m" + text + "\n" + drawn());
  shown_ = table_.size();
}

void UpScreen::note(const std::string& text) {
  if (!live_) return write("up     | " + text + "\n");
  write(erased() + "\x1b[1mup     | \x1b[0m" + text + "\n" + drawn());
  shown_ = table_.size();
}

void UpScreen::table(const std::vector<std::string>& lines) {
  if (!live_) return;
  const std::string erase = erased();
  table_ = lines;
  write(erase + drawn());
  shown_ = table_.size();
}

}  // namespace capstan::app
