//! P: runs programs whose memory is elsewhere.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
