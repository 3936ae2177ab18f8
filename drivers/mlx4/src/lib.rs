//! The ConnectX-3 driver: commands, ICM, EQ, CQ, QP, MR, ports, management datagrams.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
