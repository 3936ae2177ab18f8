//! InfiniBand management datagrams: SMP, SA and CM formats.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
