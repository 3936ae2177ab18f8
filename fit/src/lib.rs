//! FIT: connections, RPC and one-sided access over verbs.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
