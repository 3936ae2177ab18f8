//! A software model of the ConnectX-3.
#![forbid(unsafe_code)]
