//! The ConnectX-3 as bytes: registers, mailboxes, contexts, WQEs, CQEs, EQEs.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
