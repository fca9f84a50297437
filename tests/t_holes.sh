#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_holes - the hole-punch race, for a few seconds.  `make holes` runs it for longer.
exec "$(dirname "$0")/holes" 6
