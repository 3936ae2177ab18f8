#!/bin/sh
# Runs what another guest asks for: the lines up to `@end`. Answers by what they say, then `@status N`.
command=
while IFS= read -r line && [ "$line" != @end ]; do
    command="$command$line
"
done
sh -c "$command" </dev/null 2>&1
printf '\n@status %s\n' "$?"
