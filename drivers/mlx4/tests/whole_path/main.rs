//! The driver on both sides of a modelled fabric, in one process and in virtual time.

mod at_once;
mod bring_up;
mod common;
mod data_path;
mod failures;
mod multicast;
mod pages;
mod personalities;
mod read_ahead;
mod reset;
mod trace;
