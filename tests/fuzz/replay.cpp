// Runs targets on files, without a fuzzing engine and with any compiler: replay CORPUS [TARGET...]. CORPUS
// holds a folder for each target. Prints "TARGET FILES" for each; a target without files is an error.
#include <filesystem>
#include <fstream>

#include "fuzz.h"

namespace {

std::vector<std::filesystem::path> files_of(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  if (!std::filesystem::is_directory(folder)) return files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

int64_t replay(const pqk::fuzz::NamedTarget& target, const std::filesystem::path& corpus) {
  int64_t count = 0;
  for (const std::filesystem::path& file : files_of(corpus / target.name)) {
    std::ifstream stream(file, std::ios::binary);
    const std::vector<char> content{std::istreambuf_iterator<char>(stream), {}};
    const pqk::fuzz::Exact<uint8_t> bytes(reinterpret_cast<const uint8_t*>(content.data()),
                                          static_cast<int64_t>(content.size()));
    if (std::getenv("PQK_FUZZ_VERBOSE")) std::fprintf(stderr, "%s\n", file.c_str());
    target.run({bytes.data(), static_cast<size_t>(bytes.size())});
    ++count;
  }
  std::printf("%s %ld\n", target.name, static_cast<long>(count));
  return count;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s CORPUS [TARGET...]\n", argv[0]);
    return 2;
  }
  const std::vector<std::string> wanted(argv + 2, argv + argc);
  bool complete = true;
  for (const pqk::fuzz::NamedTarget& target : pqk::fuzz::targets()) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), target.name) == wanted.end()) continue;
    complete &= replay(target, argv[1]) > 0;
  }
  return complete ? 0 : 1;
}
