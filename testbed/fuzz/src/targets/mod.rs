//! The targets, a file each, and the table of them.

mod acpi;
mod boot_info;
mod command_line;
mod connection_management;
mod console_channel;
mod driver;
mod elf;
mod ext4;
mod fabric_bed;
mod fit_announcement;
mod fit_handshake;
mod fit_header;
mod fit_link;
mod fit_membership;
mod guest;
mod image;
mod layouts;
mod memory_map;
mod memory_server;
mod messages;
mod nvme;
mod planted;
mod storage_server;
mod subnet_administration;
mod subnet_management;
mod symbols;
mod vfio_user;

use crate::Target;

/// A target from its module.
macro_rules! target {
    ($module:ident, $max_len:expr) => {
        Target {
            name: stringify!($module),
            run: $module::run,
            seeds: $module::seeds,
            max_len: $max_len,
        }
    };
}

/// All targets.
pub const TARGETS: &[Target] = &[
    target!(acpi, 1024),
    target!(boot_info, 512),
    target!(command_line, 512),
    target!(connection_management, 256),
    target!(console_channel, 512),
    target!(driver, 512),
    target!(elf, 1024),
    target!(ext4, 512),
    target!(fit_announcement, 128),
    target!(fit_handshake, 256),
    target!(fit_header, fit_header::LEN),
    target!(fit_link, 1024),
    target!(fit_membership, 1024),
    target!(guest, 2048),
    target!(layouts, 512),
    target!(memory_map, 1024),
    target!(memory_server, 1024),
    target!(messages, 2048),
    target!(nvme, 512),
    target!(storage_server, 1024),
    target!(subnet_administration, 2048),
    target!(subnet_management, 1024),
    target!(symbols, 512),
    target!(vfio_user, 1024),
];

/// Shows that the search is guided; not one of [`TARGETS`].
pub const PLANTED: Target = Target {
    name: "planted",
    run: planted::run,
    seeds: Vec::new,
    max_len: 16,
};
