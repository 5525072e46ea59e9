#!/usr/bin/env bash
# check_port.sh HOST PORT: fails with advice when somebody listens there already.
. "$(dirname "$0")/common.sh"
if (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; then
  die "port $2 on $1 is taken; stop what listens there, or choose another: make run PORT=$(($2 + 1))"
fi
