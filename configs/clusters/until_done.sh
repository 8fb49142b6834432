#!/bin/sh
# Run a command, and repeat it if it is interrupted: until_done.sh COMMAND. It is repeated after SIGTERM (exit status 143),
# after SIGKILL (137), and after the loss of a rank (75). Any other exit status, such as that of an invalid argument, ends the
# loop and is returned. SIGTERM to this script is passed on to the command, which is then not repeated.
set -u
child= stopped=
trap 'stopped=yes; [ -n "$child" ] && kill -TERM "$child"' TERM INT
while :; do
  "$@" &
  child=$!
  status=0
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do  # a signal interrupts wait; the command still saves
    status=0
    wait "$child" || status=$?
  done
  case $stopped$status in
    75 | 137 | 143) echo "interrupted ($status); started again" >&2 ;;
    *) exit "$status" ;;
  esac
  sleep "${PAUSE:-10}"
done
