//! The model driven as software would, through its registers and its node's memory.

mod bench;
mod commands;
mod connections;
mod datagrams;
mod hostile;
mod partitions;
mod ports;
mod read_ahead;
