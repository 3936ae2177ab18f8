//! The probe as a unikernel: plays one part against a tool of Linux's, and ends with how it went.
//! On the host this is an empty program.
//!
//! | option | meaning |
//! |---|---|
//! | `part=PART` | `rc-client`, `rc-server`, `ud-client`, `ud-server`, `rping-client` or `rping-server` |
//! | `rounds=N`, `size=N` | of the part; `rping`'s size is its own |
//! | `peer=GID`, `to=ADDRESS`, `from=ADDRESS` | whom `rping-client` calls, and as whom |
//!
//! The pingpongs' stream is the first virtio serial device.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod image;

libos::entry!(image::main);
