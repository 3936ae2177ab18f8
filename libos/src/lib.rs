//! The kernel library that every component links: boot, paging, cores, tasks, time, PCI, console.
#![cfg_attr(not(test), no_std)]
