//! The messages that the components exchange over FIT.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
