//! The model driven as software would, through its registers and its node's memory.

mod bench;
mod commands;
mod completions;
mod connections;
mod datagrams;
mod extended;
mod firmware;
mod hostile;
mod partitions;
mod ports;
mod read_ahead;
