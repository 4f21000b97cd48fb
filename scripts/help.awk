# `make help`: the targets that have an explanation, wrapped at 80 columns.
BEGIN { FS = ":.*## " }
/^##@/ { printf "\n%s\n", substr($0, 5) }
/^[a-z-]+:.*## / { wrap(sprintf("  make %-16s", $1), $2) }

function wrap(line, text,    words, count, i) {
  count = split(text, words, " ")
  for (i = 1; i <= count; i++) {
    if (length(line " " words[i]) > 80) {
      print line
      line = sprintf("%23s", "")
    }
    line = line " " words[i]
  }
  print line
}
