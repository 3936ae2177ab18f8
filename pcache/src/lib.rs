//! The set-associative cache in front of remote memory: lookup, fill, eviction, write-back.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
