/* SPDX-License-Identifier: MIT */
/*
 * reason.h - the one list of what happens and why: code, trace and `refault status` use it.
 *
 * X(NAME, "name", "what one event is").  The library counts the first group in rf_proc.count, the
 * agent keeps the same array for itself and the sums of programs that are gone.
 */
#ifndef REFAULT_REASON_H
#define REFAULT_REASON_H

#define RF_REASON_LIST(X)                                                                          \
	X(FAULT_READ, "fault-read", "load from a page without PTE")                                \
	X(FAULT_WRITE, "fault-write", "store to a page without PTE")                               \
	X(FAULT_WP, "fault-wp", "store to a write-protected PTE")                                  \
	X(FAULT_AGENT, "fault-agent", "fault that needed the agent")                               \
	X(FAULT_BAD, "fault-bad", "fault that ended in SIGBUS")                                    \
	X(MKWRITE, "mkwrite", "clean page made dirty")                                             \
	X(MKWRITE_LOST, "mkwrite-lost", "mkwrite lost the race for the page word")                 \
	X(WB_WAIT, "writeback-wait", "store that waited for a write-back")                         \
	X(LOCK_WAIT, "lock-wait", "shared side waited for invalidate_lock")                        \
	X(FROZEN_WAIT, "frozen-wait", "store that waited for a structural change")                 \
	X(READ, "read", "read from the cache")                                                     \
	X(READ_RETRY, "read-retry", "optimistic read that had to start over")                      \
	X(WRITE, "write", "write to the cache")                                                    \
	X(STRIP_DONE, "strip-done", "mapping stripped by the stripper")                            \
	X(REQUEST, "request", "request to the agent")                                              \
	X(PIN, "pin", "pages pinned for I/O")                                                      \
	X(PIN_WAIT, "pin-wait", "truncate or its like that waited for a pin")                      \
	X(SEQUESTER, "sequester", "pinned page taken out of its file all the same")                \
	X(VALIDATE, "validate", "status asked from the server")                                    \
	X(BREAK, "break", "callback break")                                                        \
	X(MASS_BREAK, "mass-break", "server forgot its promises, or the connection was lost")      \
	X(STRIP, "strip", "file stripped of its PTEs")                                             \
	X(IN_PLACE, "in-place", "break whose bytes were stored in place")                          \
	X(MERGE, "merge", "dirty page merged with the server's")                                   \
	X(DROP, "drop", "clean page dropped")                                                      \
	X(INVALIDATE, "invalidate", "file, or range of one, that a program or a user had dropped") \
	X(EXCISE, "excise", "page dropped because its write-back was rejected")                    \
	X(FETCH, "fetch", "fetch_data sent")                                                       \
	X(FETCH_PAGE, "fetch-page", "page filled")                                                 \
	X(FLUSH, "flush", "flush asked for, or due")                                               \
	X(FLUSH_PAGE, "flush-page", "page flushed")                                                \
	X(FLUSH_BYTES, "flush-bytes", "changed bytes sent")                                        \
	X(STRUCTURAL, "structural", "truncate, fallocate, clone, dedupe or copy sent")             \
	X(GIVE_WAY, "give-way", "one of these that began anew: a pin, a slot, a lost connection")  \
	X(STORE, "store", "store_data sent")                                                       \
	X(RESEND, "resend", "change sent again, with its id, after a lost connection or a crash")  \
	X(REJECT, "reject", "store_data that the server refused for good")                         \
	X(KEY_FLUSH, "key-flush", "store to a page that was dirty under another key")              \
	X(BACK_PRESSURE, "back-pressure", "store that waited for free twins")                      \
	X(REDIRTY, "redirty", "page that stayed dirty over its flush")                             \
	X(WIRE_SENT, "wire-sent", "bytes sent to servers")                                         \
	X(WIRE_RECEIVED, "wire-received", "bytes received from servers")                           \
	X(RECONNECT, "reconnect", "connection to a server made again")                             \
	X(GARBAGE, "garbage", "message that made no sense; its sender was dropped")

enum rf_reason {
#define RF_X(name, str, text) RF_R_##name,
	RF_REASON_LIST(RF_X)
#undef RF_X
	    RF_REASONS
};

static inline const char *rf_reason_name(enum rf_reason r)
{
	static const char *const name[] = {
#define RF_X(name, str, text) str,
	    RF_REASON_LIST(RF_X)
#undef RF_X
	};
	return (unsigned)r < RF_REASONS ? name[r] : "?";
}

#endif
