//! End-to-end tests: the three components in QEMU on the modelled fabric.
#![forbid(unsafe_code)]
