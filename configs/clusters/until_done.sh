#!/bin/sh
# Run a command again while it is interrupted: until_done.sh COMMAND. A notice before a spot instance is reclaimed is SIGTERM (143),
# a killed process SIGKILL (137), and the status of a run that lost another rank is 75. Any other exit status, such as that of an
# invalid argument, ends the loop and is returned.
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
