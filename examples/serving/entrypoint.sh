#!/bin/sh
# SageMaker starts a container with one word, serve or train; anything else is a command of
# xlnet-fast. Each takes this shell's place, so that signals reach it.
set -eu
case "$#:${1:-}" in
    1:serve) exec python3 -m xlnet_fast.cli.sagemaker_serving ;;
    1:train) exec python3 -m xlnet_fast.cli.sagemaker ;;
    *) exec xlnet-fast "$@" ;;
esac
