#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_order - the assertions of the library's lock order notice what violates it (tests/prog/order.c).
cd "$(dirname "$0")/.." && exec "${B:-build}/tests/order"
