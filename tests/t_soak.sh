#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_soak - half a minute of `make soak`.
exec "$(dirname "$0")/soak" 30
